"""The faults that tests inject, and what is promised for each: docs/guarantees.md is made from it.

A test names its faults by the mark `fault`: `@pytest.mark.fault(1, 2)`. Every fault has a test, and
every mark a fault, or tests/unit/test_faults.py fails.
"""

from dataclasses import dataclass

GROUPS = {
    "A": "RunPod's API",
    "B": "Pods",
    "C": "SSH and transfer",
    "D": "The controller",
    "E": "The hub and the data",
    "F": "Computation",
    "G": "Results at rest",
    "H": "Money, secrets, people",
}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        group: key of GROUPS.
        what: what is injected.
        promise: what happens; what it costs stands in COSTS.
        you: what you do; by default nothing.
        untested: why no test can inject it; empty for all others.
    """

    group: str
    what: str
    promise: str
    you: str = "nothing"
    untested: str = ""


def _group(group: str, rows: dict[int, tuple[str, ...]]) -> dict[int, Fault]:
    return {number: Fault(group, *row) for number, row in rows.items()}


AGAIN, MEND = "run again", "mend it, run again"
OTHER = "another pod is rented; finished batches stay"
REFUSED = "refused by name before anything is computed"

FAULTS: dict[int, Fault] = {
    **_group("A", {
        1: ("the answer to a creation is lost, the pod exists", "it is found by its name and used: one pod is paid"),
        2: ("a creation answers 500, the pod exists", "as 1"),
        3: ("a creation has no answer, its pod turns up late", "it is ended on sight; the job runs on one pod"),
        4: ("a creation answers 5xx, there is no pod", "asked again under a new name, while patience lasts"),
        5: ("a kind of GPU is not free, or not for this account", "the next kind, then the next tier"),
        6: ("no kind is free until patience ends", "the job fails with a line for each kind; nothing was billed; others go on", "allow more kinds, or later"),
        7: ("an answer without data or with unknown fields", "asked again; unknown fields are ignored"),
        8: ("HTML or half an answer", "asked again"),
        9: ("too many requests, with and without Retry-After", "all calls wait as long as was asked"),
        10: ("no API key", "said before any job runs; a dry run needs none", "set RUNPOD_API_KEY"),
        11: ("a wrong key, or one that is revoked during a run", "said before any job; during a run the job goes on by SSH, and pods that cannot be ended are named: they end themselves", "make a new key, run again"),
        12: ("no money", "said before any job where the API tells, else at the first refusal", "add credit"),
        13: ("a pod never gets a port for SSH", "ended after twenty minutes; another one"),
        14: ("a pod's port changes", "found again by the API; the job goes on"),
        15: ("a pod ends right after its start", "another one, three times at most"),
        16: ("wrong or fewer GPUs, too little memory or disk, an old driver", "seen before anything is sent; ended; its host is avoided, where the API names it"),
        17: ("a pod costs more than was quoted", "over the limit it is ended at once"),
        18: ("a pod is deleted by hand", "seen within two minutes; another one"),
        19: ("a pod will not end", "asked again until it is proven; else it is named with the way to end it, and the run has failed", "end it as said"),
        20: ("listings lag", "two looks and the id must agree: no second pod, none forgotten"),
        21: ("pods of an earlier run that crashed", "taken over, or ended at the next start; a run that does neither names them, and one that the ledger has lost, too"),
        22: ("a pod of someone else with a similar name", "left alone"),
        23: ("hostile words from the API", "no control character reaches the terminal, no name a path"),
    }),
    **_group("B", {
        24: ("a pod dies while it boots", OTHER),
        25: ("… while files are sent", OTHER),
        26: ("… while the model comes", OTHER),
        27: ("… while the model is loaded", OTHER),
        28: ("… in the forward pass", "batches that came home stay; the others are computed on another pod"),
        29: ("… while results come back", OTHER),
        30: ("a pod of the spot market gets SIGTERM, then SIGKILL", "spot pods are not rented", "nothing", "spot pods are not rented: what dies is 24 to 29"),
        31: ("pods die again and again", "the job fails after three restarts; finished batches stay", AGAIN),
        32: ("the GPU, or anything else in the job, fails", "its words are shown; finished batches stay; its pod ends", MEND),
        33: ("a job hangs", "stopped at its limit, its pod is ended", AGAIN),
        34: ("a job is killed for lack of memory, as the kernel counts, or fails on a disk that was seen to be full", "another pod with twice the memory, or more disk; twice at most"),
    }),
    **_group("C", {
        35: ("sshd answers late", "waited for, three minutes at most"),
        36: ("a port answers with no banner, junk, or nothing after it", "given up in time, tried again"),
        37: ("the key is not known yet", "tried again"),
        38: ("the host key of a known pod changes", "refused; another pod"),
        39: ("another pod answers at its address", "it must say its own name; nothing is sent to it"),
        40: ("the link drops in a command", "the job works on; it is never started twice"),
        41: ("a link that swallows everything", "noticed by silence; a new connection"),
        42: ("the link drops in a transfer, or it is cut", "begun again; no half file has a final name"),
        43: ("bytes are altered on the way or on the pod", "their sha256 differs: fetched again, then another pod"),
        44: ("names that lead elsewhere, links out of the folder", "refused; only expected names are accepted"),
        45: ("a slow link", "takes long, and is not given up while bytes come"),
        46: ("the laptop sleeps", "goes on where it was; after longer than the grace with another pod: the first has ended itself, and counts until then"),
        47: ("a shell that chatters", "its noise is passed over"),
    }),
    **_group("D", {
        **{48 + i: (f"the controller is killed {when}", "the same command takes over or ends the pod: one paid pod a job, equal results", AGAIN) for i, when in enumerate((
            "before or after it writes its intent", "after the creation", "after it binds the pod", "after the first login", "after the files are sent",
            "after the start", "while the job works", "while results come", "before or after a rename", "before or after the end of a pod"))},
        58: ("Ctrl-C once, twice, SIGTERM, SIGHUP", "once: finished parts are fetched, pods end (or work on, if so set); twice: pods that may be alive are named", AGAIN),
        59: ("a second run in one folder", "stops at once and names the first"),
        60: ("two folders, one account", "each leaves the pods of the other alone"),
        61: ("the disk is full", "no half file; pods end", "free some, run again"),
        62: ("results cannot be written", "said before anything runs", "mend it, run again"),
        63: (".snakemake is deleted", "receipts prove what is valid: nothing is computed again"),
        64: ("times of files change, forwards or back", "content decides, not time"),
        65: ("an error in the program while pods are alive", "all pods end", AGAIN),
        66: ("another version of the program or of a library", "what it made is computed again, so that one model has one set"),
        67: ("settings are changed", "what they decide is made again at the next run, nothing else"),
    }),
    **_group("E", {
        68: ("the hub asks to wait (429)", "waited, as long as was asked, up to ten minutes"),
        69: ("the hub answers 5xx", "asked again, five times"),
        70: ("the hub times out, resets, truncates", "goes on at the byte where it was"),
        71: ("wrong bytes of the right size", "their sha256 differs: fetched again, then an error that names the shard"),
        72: ("wrong size or tag in an answer, a page instead of a file", "an error that names the address"),
        73: ("gated, no such repository or revision", "said before a pod is rented", "accept the licence, set HF_TOKEN"),
        74: ("the branch moved", "only a pinned commit is read"),
        75: ("killed in the middle of a shard", "what was verified is not fetched again; orphans are swept"),
        76: ("the disk fills with shards", "refused with figures before; else an error that names the shard"),
        77: ("a shard or tensor is missing, extra, of another shape", REFUSED, "mend the checkpoint"),
        78: ("pickled weights, code in the repository", "never opened, never run"),
        79: ("a hostile config.json", REFUSED),
        80: ("the tokenizer changed or is no tokenizer", REFUSED),
        81: ("the data set changed", "texts are chosen once, at a pinned commit, and their digests checked"),
        82: ("sequences that repeat, overlap or miss", "`verify` fails and names them"),
    }),
    **_group("F", {
        83: ("out of GPU memory", "reads less ahead; then a larger GPU; the same numbers"),
        84: ("out of GPU memory in the middle", "goes on where it was"),
        85: ("NaN or infinite activations", "the batch fails and names the site; its siblings stay", "look at the model"),
        86: ("constant activations, another number of layers", "`verify` fails and names it"),
        87: ("batches of several types", "refused in one model"),
        88: ("two GPUs that differ in the last bits", "device and versions stand in each receipt", "nothing", "one kind of device is here; two would be needed"),
        89: ("a pod without the packages", "the environment has hashes; a failure to build it is said with pip's words"),
    }),
    **_group("G", {
        90: ("truncated, flipped, zeroed, longer, empty files", "found at the start of each run, built again alone"),
        91: ("a receipt that is missing, damaged, forged, of another file", "counts as none"),
        92: ("JSON with NaN, doubled keys, huge numbers, depth", "refused by name"),
        93: ("damaged parquet", "refused by its digest"),
        94: ("another model's files copied into place", "refused: the receipt says whose they are"),
        95: ("hostile names in tables and report", "escaped"),
    }),
    **_group("H", {
        96: ("the budget is reached", "a warning at 80 %; then all pods end; what is finished is here", "raise it, run again"),
        97: ("the estimate is over the budget", "refused before any job"),
        98: ("secrets", "in no argument list, log, ledger, receipt, report, export or core dump; in no variable of a pod, the key in none of a job"),
        99: ("a private file among the tables", "not exported: only known tables are"),
        100: ("a typo in a model, a key, an option", "refused in a second, with the nearest name", "mend it"),
        101: ("no GPU and no profile", "stops before any download, names the ways out", "choose one"),
        102: ("the laptop dies for ever", "the pod ends itself within its grace"),
        103: ("a pod that may not end itself", "nothing is sent to it; ended from here; another one"),
        104: ("pods that were ended live on", "they hold their places among the most pods that may be alive, and their clocks go on, until they are proven gone", "end them as said"),
        105: ("another account's key in the same folder", "pods that it does not see are never written off: they are named, and left alone", "use the key that they were rented with"),
        106: ("a folder is copied or moved while its pods work", "a copy leaves them alone; where the folder moves they go with it"),
        107: ("a pod that is kept and cannot end itself", "named with its price by every run until it is gone", "end it as said"),
        108: ("run after run fails", "all runs of a folder have a budget of 24 hours", "raise it, or wait"),
        109: ("a job whose words, exit status or products look like a bad machine", "it fails at once, on one pod, with its last lines; all its other products are here", MEND),
        110: ("a job that cannot run on a pod is found late", "it fails alone; the pods of others work on", MEND),
        111: ("a job that prints without end", "its results come home first; of its console beginning and end are kept"),
    }),
}  # fmt: skip


COSTS: dict[str, set[int]] = {
    "nothing": {
        *(106, 107, 108, 110, 111),
        *(1, 2, 4, 5, 6, 10, 12, 14, 22, 23, 30, 47, 59, 60, 62, 63, 64, 73, 74, 78, 80, 81, 88),
        *(95, 97, 98, 99, 100, 101),
    },
    "time": {7, 8, 9, 20, 35, 36, 37, 40, 41, 42, 45, 46, *range(48, 58), 68, 69, 70, 71, 75, 84},
    "minutes of one more pod": {3, 13, 15, 16, 17, 18, *range(24, 28), 29, 34, 38, 39, 43, 83, 103},
    "one more pod, for what was not home": {28, 31, 32, 33, 58, 61, 65},
    "the pod until it ends": {11, 19, 21, 102, 104, 105},
    "the pod until then": {109, 44, 72, 76, 77, 79, 89},
    "what is made again": {66, 67, 85, 90, 91, 92, 93, 94},
    "what the model has cost": {82, 86, 87},
    "the budget, and what its pods cost while they end": {96},
}
"""What each fault costs, beside what the run would have cost without it."""


def cost(number: int) -> str:
    """Return what a fault costs."""
    (found,) = (text for text, numbers in COSTS.items() if number in numbers)
    return found


def table() -> str:
    """Write the guarantees as Markdown."""
    lines: list[str] = []
    for group, title in GROUPS.items():
        lines += ["", f"## {title}", "", "| | what goes wrong | what happens | costs | you |"]
        lines.append("| --- | --- | --- | --- | --- |")
        for number, fault in FAULTS.items():
            if fault.group == group:
                note = f" *Not tested: {fault.untested}.*" if fault.untested else ""
                cells = (str(number), fault.what, fault.promise + note, cost(number), fault.you)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:])

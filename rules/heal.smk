"""Missing or invalid: what is damaged is marked, so that -n shows it and a run builds exactly that.

Reading this file checks every result against its receipt or recorded digest, in the main process
only. One process owns a folder at a time, from `onstart` to its end: .snakemake/moe-outliers/owner.
The steps are in src/moe_outliers/workflow/healing.py.
"""

import sys
from functools import partial

from moe_outliers.workflow.script import announce

say = partial(print, file=sys.stderr, flush=True)

snakemake_internals.keep_no_copies()
announce()
if workflow.is_main_process:
    with snakemake_internals.errors():
        claimed = healing.claim(say)
    if claimed:
        healing.clear_after_dead_owner()
        checked = healing.check(
            {model: pairs_of(model) for model in models},
            partial(snakemake_internals.is_made, workflow, besides="extract"),
            full=config["receipts"] == "full",
        )
        healing.mark(checked, snakemake_internals.Marks(), say)
        damaged |= checked.damaged
        claimed.close()


onstart:
    jobs = snakemake_internals.jobs_to_run(workflow)
    with snakemake_internals.errors():
        healing.refuse_without_gpu(
            {rule for rule, outputs in jobs},
            executor=snakemake_internals.executor(workflow),
            device=config["extract"]["device"],
        )
        facts.refuse(
            wrong,
            {path.parent.name for rule, made in jobs if rule == "extract" for path in made},
        )
        # The lock is held for as long as this process lives.
        workflow.globals["own"] = healing.own(say)
    healing.remove_damaged(damaged, jobs)

"""Facts: what the table says of each model is compared with its checkpoint before anything is rented.

In the main process only; of repositories the hub is asked once for each commit, for three seconds
at most.
"""

from moe_outliers.checkpoint import facts

wrong = {}
if workflow.is_main_process:
    wrong, unknown = facts.compare(rows.values(), here, str(table))
    for line in [line for said in wrong.values() for line in said]:
        say(f"WRONG: {line}")
    for reason, named in facts.by_reason(unknown).items():
        say(f"not compared with the checkpoint: {named}: {reason}")

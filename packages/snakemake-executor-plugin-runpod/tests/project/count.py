"""Count letters, part by part; a part that is there already is left alone."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from wordlib import count

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

text = Path(snakemake.input[0]).read_text()
params, outputs = snakemake.params, snakemake.output
with Path(snakemake.log[0]).open("w") as log:
    pod, price = (os.environ.get(f"RUNPOD_{name}") for name in ("POD_ID", "PRICE_USD_PER_H"))
    print(f"pod {pod} at {price}, steps {os.environ.get('RUNPOD_STEPS')}", file=log)
    token = os.environ.get("HF_TOKEN_PATH")
    if token:
        print("token", hashlib.sha256(Path(token).read_bytes()).hexdigest(), file=log)
    for phase in ("download", "load"):
        Path(f"phase-{phase}").touch()
        time.sleep(params.seconds)
    for number, output in enumerate(map(Path, outputs)):
        if output.exists() and output.stat().st_size:
            print(f"part {number} is there", file=log, flush=True)
            continue
        time.sleep(params.seconds)
        if params.fail == str(number):
            big = params.touch and params.touch in os.popen("nvidia-smi --query-gpu=name").read()
            if not big:
                print(params.message, file=log, flush=True)
                sys.exit(f"part {number} failed: {params.message}")
        part = output.with_suffix(".part")
        part.write_text(json.dumps(count(text, params.alphabet, number)) + "\n")
        part.replace(output)
        print(f"{number + 1} of {len(outputs)} parts", file=sys.stderr, flush=True)
        print(f"part {number} was made", file=log, flush=True)

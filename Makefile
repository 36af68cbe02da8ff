# make demo       the whole pipeline on seven miniature models, on this CPU: figures and a report
# make demo-runpod   the same, its extraction on emulated pods
# make quick      the tests of single modules, within half a minute: the inner loop
# make check      lint, types, tests: what .ci/run calls
# make test-all   the slow tests too
# make oldest     the engine's tests with the oldest transformers that is allowed
# make oldest-snakemake, make newest-snakemake   the workflow's tests with the oldest and newest Snakemake that is allowed

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PLUGIN := packages/snakemake-executor-plugin-runpod
SOURCES := src scripts tests benchmarks training packages
PARALLEL := --numprocesses 2 --dist loadgroup

.PHONY: install demo demo-runpod quick check lint types test test-slow test-all oldest oldest-snakemake newest-snakemake soak format constraints clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(PLUGIN)/pyproject.toml envs/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c envs/constraints.txt -e '$(PLUGIN)[sdk,test]' -e '.[extract,runpod,slurm,export,progress,test]'
	touch $@

demo: install
	$(BIN)/python -m moe_outliers.demo.miniatures demo/models
	$(BIN)/snakemake --directory demo --configfile config/demo.yaml --report report.html --report-after-run
	@echo "figures:  demo/results/figures/"
	@echo "report:   demo/results/report.html (and Snakemake's own: demo/report.html)"

# The same on emulated pods: by the real executor and SSH, with nothing rented.
demo-runpod: install
	$(BIN)/python -m moe_outliers.demo.miniatures demo/models
	PYTHONPATH=$(PLUGIN)/tests $(BIN)/python -m emulator -- $(BIN)/snakemake --profile runpod --directory demo-runpod \
	  --configfile config/demo.yaml
	@echo "figures:  demo-runpod/results/figures/"

check: lint types test

lint: install
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/snakefmt --check .
	$(BIN)/snakemake --lint

types: install
	$(BIN)/mypy

# Tests that start no process and import no torch.
quick: install
	$(BIN)/python -m pytest --quick tests/unit

test: install
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not gpu'

test-slow: install
	$(BIN)/python -m pytest $(PARALLEL) -m 'slow and not gpu'

test-all: test test-slow

# The streamed engine with the oldest transformers that pyproject.toml allows, in an environment of its own.
OLDEST := .venv-oldest

oldest:
	$(PYTHON) -m venv $(OLDEST)
	grep -vE '^(transformers|huggingface-hub)==' envs/constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet -c $(OLDEST)/constraints.txt \
	  -e '.[extract,test]' "$$(sed -nE 's/.*"(transformers)>=([0-9.]+).*/\1==\2.*/p' pyproject.toml)"
	$(OLDEST)/bin/python -m pytest $(PARALLEL) $(addprefix tests/unit/,engine/test_streamed.py engine/test_streamed_faults.py \
	  recording/test_recorder.py checkpoint/test_headers.py)

# Healing relies on private names of Snakemake: an environment over the usual one, with another Snakemake.
WITH_SNAKEMAKE := .venv-snakemake
ALLOWED := $(shell sed -nE 's/.*"snakemake(>=.*)",.*/\1/p' pyproject.toml)

oldest-snakemake: VERSION = $(subst >=,==,$(firstword $(subst $(comma), ,$(ALLOWED))))
newest-snakemake: VERSION = $(ALLOWED)
comma := ,

oldest-snakemake newest-snakemake: install
	$(BIN)/python -m venv --clear $(WITH_SNAKEMAKE)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(\"' + sysconfig.get_path('purelib') + '\")')" \
	  > $$($(WITH_SNAKEMAKE)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/usual.pth
	$(WITH_SNAKEMAKE)/bin/python -m pip install --quiet --upgrade 'snakemake$(VERSION)'
	$(WITH_SNAKEMAKE)/bin/python -m snakemake --version
	$(WITH_SNAKEMAKE)/bin/python -m pytest --numprocesses 0 -m 'not slow' tests/unit/workflow/test_snakemake_internals.py \
	  tests/unit/workflow/test_healing.py tests/workflow/test_healing.py tests/workflow/test_selection.py

# Hours of random faults; not in continuous integration.
soak: install
	LIFE_SEQUENCES=5000 CHAOS_KILLS=200 CHAOS_ROUNDS=20 CHAOS_P=0.3 CHAOS_DEMO=1 $(BIN)/python -m pytest --timeout 36000 \
	  $(PLUGIN)/tests/test_chaos.py $(PLUGIN)/tests/test_life.py tests/workflow/test_killing.py tests/workflow/test_pods.py

format: install
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/snakefmt .

# Replaces the list of a conda file, the requirements without those that they need, by the pins.
define conda
sed -i.old '/- pip:/q' envs/$(1).yaml && rm envs/$(1).yaml.old
uv pip compile --quiet --no-deps --python-version 3.11 --no-annotate --no-header $(2) \
	  -c envs/constraints.txt pyproject.toml | sed 's/^/      - /' >> envs/$(1).yaml
endef

constraints:
	uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --all-extras \
	  --no-emit-package snakemake-executor-plugin-runpod \
	  pyproject.toml $(PLUGIN)/pyproject.toml -o envs/constraints.txt
	uv pip compile --quiet --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header \
	  --generate-hashes --extra extract -c envs/constraints.txt pyproject.toml -o envs/worker.txt
	$(call conda,analysis,)
	$(call conda,extract,--extra extract)

clean:
	rm -rf $(VENV) $(OLDEST) $(WITH_SNAKEMAKE) demo demo-runpod logs .snakemake .pytest_cache .mypy_cache .ruff_cache

# On a fresh machine `make demo` and `make test` each set everything up by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OWNER := $(VENV)/.checkout
export OMP_NUM_THREADS ?= 1
# The code of this checkout, whatever is installed in VENV.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
# Who made an environment that is not ours: it is never changed.
FOREIGN := $(if $(filter $(CURDIR)/%,$(abspath $(VENV))),,$(if $(wildcard $(BIN)/python),$(filter-out $(CURDIR),$(or $(shell cat $(OWNER) 2>/dev/null),another))))

.PHONY: help setup demo demos test test-drills fuzz mutants test-fast check format format-check lint types arch golden lock bench bench-sims \
	bench-ray bench-store bench-interleave bench-surgery bench-learning bench-algorithms bench-furniture bench-experts \
	bench-gpu bench-rllib bench-sweeps bench-rllib-learning bench-soak bench-time-limits audit clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-20s %s\n", $$1, $$2}'

$(READY): requirements.lock pyproject.toml
ifeq ($(FOREIGN),)
	@echo "Setting up $(VENV): 7 GB of packages (PyTorch with CUDA is most of it); minutes on a fast line, once."
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, found {v[0]}.{v[1]}. Try: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "$(CURDIR)" > $(OWNER)
	@$(BIN)/python -m pip install --quiet "uv>=0.5"
	@# Compiled now: where PYTHONDONTWRITEBYTECODE is set, or the files belong to somebody else, every process of a run
	@# would compile the 1,700 modules that it imports by itself. Measured: a worker starts in 8 s instead of 19.
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	@$(BIN)/python -m pip install --quiet "uv>=0.5"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(READY)
else
	@echo "VENV=$(VENV) was made by $(FOREIGN): it is used as it is, with the code of this one."
endif

setup: $(READY)  ## make the virtual environment from the lock file

demo: DEMO := runs/demo$(if $(SEED),-seed$(SEED))
demo: $(READY)  ## clone demonstrations, fine-tune with IN-RIL on a local Ray cluster, write a report
	@echo "robomimic Lift: clones 10 scripted demonstrations, fine-tunes for 280,000 env steps on a local Ray cluster,"
	@echo "evaluates on 200 episodes before and after. About 8 minutes and 6 GiB on two cores. Result: $(DEMO)/."
	@rm -rf $(DEMO)
	$(BIN)/inril train --config demo $(if $(SEED),--seed $(SEED)) --out $(DEMO)
	@echo "Look at $(DEMO)/report.html, $(DEMO)/summary.json, and: $(BIN)/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"

demos: $(READY)  ## make the bundled data set again, with its fixed seed
	@rm -f inril_ray/data/lift_scripted.hdf5
	$(BIN)/inril demos make robomimic/lift --out inril_ray/data/lift_scripted.hdf5 --num 12 --held-out 2 --seed 0 --max-steps 200 \
		--set noise=0.3 --set aim_error_m=0.012

test: $(READY)  ## run all tests but the drills
	@echo "Unit, contract, simulator, Ray and command line tests; the longest drills are in make test-drills."
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not drill"

test-drills: $(READY)  ## clusters that lose jobs and nodes, RLlib with several learners, searches: minutes each
	$(BIN)/pytest -q -m drill

fuzz: $(READY)  ## over 10,000 generated configurations, command lines, sweeps, checkpoints and damaged data sets
	INRIL_FUZZ=25 $(BIN)/pytest -q -n 2 --dist load -m fuzz --timeout 3000

mutants: $(READY)  ## change the mathematics in 3,000 ways and count what no test notices; an hour on one core
	$(BIN)/python -m tests.mutants

test-fast: $(READY)  ## run the tests that need neither Ray nor a simulator
	$(BIN)/pytest -q -m "not ray and not sim and not slow"

check: format-check lint types arch audit test  ## what CI runs

audit: $(READY)  ## look the pinned packages up in PyPI's list of known vulnerabilities
	@VENV=$(VENV) .ci/audit

format: $(READY)  ## format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix-only --quiet .

format-check: $(READY)
	$(BIN)/ruff format --check --quiet . || (echo "Run: make format"; exit 1)

lint: $(READY)  ## ruff
	$(BIN)/ruff check --quiet .

types: $(READY)  ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

arch: $(READY)  ## import-linter: imports point down
	$(BIN)/lint-imports

golden: $(READY)  ## make the golden files again and print what moved
	$(BIN)/python -m tests.update_golden

lock: $(READY)  ## pin the dependencies of pyproject.toml again
	$(BIN)/uv pip compile pyproject.toml --extra robosuite --extra robotics --extra furniture --extra optuna --group dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --no-emit-find-links --no-annotate --quiet -o requirements.lock

bench: bench-sims bench-store bench-ray bench-interleave bench-surgery  ## the short benchmarks, 10 minutes; results in benchmarks/results

bench-sims: $(READY)  ## every simulator against its reference, 6 minutes
	$(BIN)/python -m benchmarks.sims

bench-store: $(READY)
	$(BIN)/python -m benchmarks.store

bench-ray: $(READY)
	$(BIN)/python -m benchmarks.ray_overhead

bench-interleave: $(READY)
	$(BIN)/python -m benchmarks.interleave

bench-surgery: $(READY)  ## gradient surgery against TorchJD and a summed backward, 1 minute
	$(BIN)/python -m benchmarks.surgery

bench-algorithms: $(READY)  ## every algorithm learns Lift from its cloned policy, two seeds; an hour
	$(BIN)/python -m benchmarks.algorithms

bench-learning: $(READY)  ## the long run: three seeds of Lift, about 80 minutes on two cores
	$(BIN)/python -m benchmarks.learning

bench-furniture: $(READY)  ## the furniture tasks on CPU cores, 5 minutes
	$(BIN)/python -m benchmarks.furniture

bench-experts: $(READY)  ## a hundred scripted episodes of every furniture task, up to an hour
	$(BIN)/python -m benchmarks.experts

bench-gpu: $(READY)  ## the furniture tasks on one GPU; needs CUDA
	$(BIN)/python -m benchmarks.furniture_gpu

bench-sweeps: $(READY)  ## memory of a sweep of four trials; a second rollout worker
	$(BIN)/python -m benchmarks.sweep_memory
	$(BIN)/python -m benchmarks.worker_scaling

bench-rllib: $(READY)  ## RLlib's PPO against ours, and the plug-in inside RLlib, 15 minutes
	$(BIN)/python -m benchmarks.rllib

bench-rllib-learning: $(READY)  ## PPO and SAC of RLlib on InvertedPendulum with and without imitation, 18 minutes
	$(BIN)/python -m benchmarks.rllib_learning

bench-time-limits: $(READY)  ## what should follow a time limit: ten runs of Lift, 40 minutes
	$(BIN)/python -m benchmarks.time_limits

bench-soak: $(READY)  ## a run of two hours on Ray: growth of memory, handles, threads and disk
	$(BIN)/python -m benchmarks.soak

clean:  ## remove what was built; runs/ stays
	rm -rf $(if $(FOREIGN),,$(VENV)) .pytest_cache .ruff_cache

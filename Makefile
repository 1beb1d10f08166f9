# Everything a newcomer needs: Python 3.11 and make. `make help` lists the targets.

PYTHON ?= python3.11
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.requirements
PEERS  := benchmarks/.venv-peers
# Lines of code: 7,000 for the house, 560 for the evidence method with its references and probes, 1,270 for logs of one's
# own (mbml/logs), 1,110 for the policy as a folder (mbml/deploy), 800 for fit, 460 for play, trackers and the command,
# 350 for checksums, claims, metrics and other formats out, 890 for clusters that grow and vanish, jobs, needs and search
# spaces, 400 for many tasks and teachers that share, 257 for what a stranger's family, YAML, Ray, a terminal and
# options may do, 60 for products on AMD's processors and memory that is kept, 153 for the bank of teachers as a policy,
# 6 for processes that Ray forgot, 90 for a teacher of all tasks together, which
# may act by itself where nothing was seen.
LIMIT  := 13403
SWEEPS := $(sort $(basename $(notdir $(wildcard tune_configs/*.yaml))))

# ENV is also a variable of POSIX shells (a start-up file): keep ours out of the recipes' environment.
unexport ENV
ifneq ($(strip $(RAY_ADDRESS)),)
export RAY_ADDRESS
else
unexport RAY_ADDRESS
endif

# Of a finished run of ENV.
RUN_POLICY = runs/$(subst :,-,$(strip $(ENV)))-$(or $(PRESET),laptop)-seed$(or $(SEED),0)/policy
# Without an ENV or a SWEEP the command line says which there are.
OPTIONS = $(if $(strip $(ENV)),--env '$(ENV)') $(if $(PRESET),--preset $(PRESET)) $(if $(SEED),--seed $(SEED)) \
          $(if $(STORE),--store '$(STORE)') $(if $(SEEDS),--distill-seeds $(SEEDS)) \
          $(if $(DASHBOARD),--dashboard) $(ARGS)

OF_sweep = $(if $(strip $(SWEEP)),--sweep '$(SWEEP)')
OF_fit = $(if $(DATA),--data $(DATA)) --out '$(or $(OUT),runs/fit)' $(if $(COLUMNS),--columns '$(COLUMNS)')

.DEFAULT_GOAL := help
.PHONY: help setup pipeline fit sweep warmstart figures submit status dashboard logs stop report export play bench bench-peers test torture lint count clean

help:
	@echo "make pipeline ENV=...          collect, learn, relabel, distil, evaluate and report one environment"
	@echo "make fit DATA=... [OUT=...]     learn one policy from logs of your own, without a simulator (docs/fit.md)"
	@echo "make sweep SWEEP=... ENV=...   compare methods or settings with Ray Tune (tune_configs/)"
	@echo "make warmstart ENV=...         SAC on the unseen tasks, from scratch and from the multi-task policy"
	@echo "make submit ENV=... STORE=...  the same as a job of the cluster at RAY_ADDRESS=http://...:8265; then make status,"
	@echo "                               make logs JOB=..., make stop JOB=..., make report STORE=... (docs/cluster.md);"
	@echo "                               make dashboard opens that address in the browser"
	@echo "make figures ENV=...           draw the paper's figures from the finished sweeps"
	@echo "make report ENV=...            write the report of a finished run again"
	@echo "make export ENV=...            write a finished run's policy as a folder of its own, for other programs"
	@echo "make play POLICY=...           watch a policy's folder act: returns, a picture, films (ENV=..., TASK=test/3)"
	@echo "make bench                     speed beside other libraries (those that make bench-peers has installed)"
	@echo "make test                      pytest (TESTS=tests/mbml chooses a part)"
	@echo "make torture                   shoot at real runs for at most MINUTES=60 and count what is lost"
	@echo "make lint                      ruff, pyright, import-linter, count"
	@echo "make count                     lines of code, which may be at most $(LIMIT)"
	@echo "make setup                     virtual environment and pinned requirements (the others do it when needed)"
	@echo "make clean                     remove caches, also of copies from stores behind a URL; runs/ and $(VENV)/ stay"
	@echo
	@echo "Variables of pipeline, sweep, warmstart, figures, report and export:"
	@echo "  ENV          an environment, such as umaze_goal ('make pipeline' lists them), or your own as module:family"
	@echo "  PRESET       smoke (every stage, numbers mean nothing), laptop (default), paper (the authors' sizes)"
	@echo "  SEED         0, 1, 2, ... (default 0)"
	@echo "  SEEDS        seeds of the multi-task learner, from the same data and teachers, such as SEEDS='0 1 2'"
	@echo "  SWEEP        $(SWEEPS), or a YAML file of your own"
	@echo "  STORE        where results are kept: a folder or an fsspec address such as s3://bucket/path"
	@echo "  DASHBOARD    1: also Ray's dashboard; its address and token are printed"
	@echo "  RAY_ADDRESS  an existing Ray cluster; without it Ray starts inside the run and ends with it"
	@echo "  ARGS         more options; '$(RUN) -m pipeline run --help' lists them"
	@echo "Variables of submit, beside these:"
	@echo "  CMD          run (default), sweep, warmstart or fit, with its own variables"
	@echo "  WAIT         0: do not follow the job"
	@echo "Variables of play:"
	@echo "  POLICY       the folder, or that of a finished run of ENV; ENV is by default the environment that it learned in"
	@echo "  TASK         split and number, such as test/3 (default test/0)"
	@echo "Variables of fit, beside PRESET, SEED, SEEDS, STORE and ARGS:"
	@echo "  DATA         files or folders of logs"
	@echo "  COLUMNS      a YAML file that says which column is what"
	@echo "  OUT          where dataset, report and policy go (default runs/fit)"
	@echo "Variables of setup:"
	@echo "  PYTHON       a Python 3.11 (default python3.11)"
	@echo "  PIP_ARGS     more options for pip, such as the address of another index"

setup: $(STAMP)

$(STAMP): requirements.txt
	@command -v $(PYTHON) >/dev/null 2>&1 && \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1 || \
		{ echo "Python 3.11 is needed and '$(PYTHON)' is not one: install it, or name one with make $(MAKECMDGOALS) PYTHON=/path/to/python3.11." >&2; exit 2; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt $(PIP_ARGS)
	@touch $(STAMP)

pipeline: $(STAMP)
	@$(RUN) -m pipeline run $(OPTIONS)

fit: $(STAMP)
	@$(RUN) -m pipeline fit $(OF_fit) $(OPTIONS)

sweep: $(STAMP)
	@$(RUN) -m pipeline sweep $(OF_sweep) $(OPTIONS)

warmstart: $(STAMP)
	@$(RUN) -m pipeline warmstart $(OPTIONS)

submit: $(STAMP)
	@$(RUN) -m pipeline submit $(if $(filter 0,$(WAIT)),--no-wait) $(or $(CMD),run) $(OF_$(or $(CMD),run)) $(OPTIONS)

status dashboard: $(STAMP)
	@$(RUN) -m pipeline $@

logs stop: $(STAMP)
	@$(RUN) -m pipeline $@ $(if $(strip $(JOB)),'$(JOB)')

figures: $(STAMP)
	@$(RUN) -m pipeline figures $(OPTIONS)

report: $(STAMP)
	@$(RUN) -m pipeline $(if $(strip $(ENV)),report,$(if $(STORE),fetch,report)) $(OPTIONS)

export: $(STAMP)
	@$(RUN) -m pipeline export-policy $(OPTIONS)

play: $(STAMP)
	@$(RUN) -m pipeline play $(if $(strip $(POLICY)$(ENV)),--policy '$(or $(strip $(POLICY)),$(RUN_POLICY))') \
		$(if $(strip $(ENV)),--env '$(ENV)') $(if $(strip $(TASK)),--task '$(TASK)') $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(STAMP)
	@$(RUN) -m benchmarks $(ARGS)

bench-peers: $(STAMP)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt $(PIP_ARGS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps d3rlpy==2.8.1 $(PIP_ARGS)

test: $(STAMP)
	$(RUN) -m pytest -n 2 --dist loadgroup $(TESTS)

torture: $(STAMP)
	@$(RUN) -m tests.torture --minutes $(or $(MINUTES),60) $(ARGS)

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright
	$(VENV)/bin/lint-imports
	$(RUN) -m tests.count --limit $(LIMIT)

count: $(STAMP)
	@$(RUN) -m tests.count --limit $(LIMIT)

clean:
	rm -rf "$${MBML_CACHE:-$${TMPDIR:-/tmp}/mbml-cache-$$(id -u)}"
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info MUJOCO_LOG.TXT
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './$(PEERS)/*' -prune -exec rm -rf {} +

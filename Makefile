# make        sets up the environment, and builds and checks a bundle for every cell of params.yaml
# make test   sets up the environment and runs every test
# make lint   checks style and types
# make prove  runs what takes longer: a fleet with S3 and a Ray cluster of three nodes, second builds, further kinds
# make parity compares the networks with a live run of the official package: SIZE=tiny, mini, or 0.6b or 1.7b (random)
# make golden recomputes the golden values of `make test`
# make edges  tries every case of tests/edges/ and writes what came out to docs/edges.md
# make cell   builds one cell of conf/: VARIANT=, PRECISION=, LAYOUTS= for other runtimes; REMOTE= shares it through DVC
# make fleet  builds all cells, or CELLS='*-int8', on the Ray cluster at ADDRESS=, or on this machine without it
# make runtimes has OpenArc and optimum-intel speak from built cells: OPENARC=, OPTIMUM= where they are; VARIANTS=, LAYOUTS=
# make plan   prints which cells of params.yaml, or of VARIANTS= and PRECISIONS=, are stale
# make publish releases the cell of VARIANT= and PRECISION=: TO="publish=hub publish.owner=<name> publish.tag=v1.0.0"
# make summary prints a Markdown table of what is built
# make bench  builds synthetic bundles of full size and measures them in turns with other engines; ENGINE=, ROUNDS=
# make voices measures many voices at once, on the synthetic 0.6B bundle of `make bench`; ROUNDS=
# make openvino finds the oldest OpenVINO that speaks as the newest does, and writes it down; RELEASES= tries only those
# make sweep  measures what bits cost in words, for docs/precision.md; takes half an hour
# make sample speaks docs/hello.flac
# make screenshot pictures the server's page and the report of what is built, with Chromium: docs/page.png, docs/report.png
# make workflows checks the GitHub Actions workflows with actionlint

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: all setup test lint prove parity golden edges view cell fleet plan remote publish summary bench openvino
.PHONY: runtimes sweep sample screenshot workflows voices
.DEFAULT_GOAL := all

all: setup
	$(BIN)/dvc repro
	$(BIN)/python -m pipeline.report

# One process per core, each with one thread: more threads only slow these small networks down.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder --durations=15

prove: setup
	$(BIN)/pytest -m prove
	@# Named beside its own folder, pytest would leave this file out.
	$(BIN)/pytest -m prove tests/fleet/prove_fleet.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The official package needs an environment of its own, and the comparison needs 7 GB of memory at 0.6b, 13 GB at 1.7b.
REFERENCE ?= build/reference
SIZE ?= tiny
FRAMES = $(if $(filter tiny,$(SIZE)),64,16)
SOURCE = $(if $(filter mini,$(SIZE)),,variant.source=synthetic)
LIVE = build/parity/$(SIZE)
COMPARED = $(patsubst conf/variant/%.yaml,%,$(wildcard conf/variant/$(SIZE)-*.yaml))

parity: setup
	@test -n "$(COMPARED)" || { echo "error: SIZE is tiny, mini, 0.6b or 1.7b, not $(SIZE)" >&2; exit 1; }
	bash tests/reference/install.sh $(REFERENCE)
	for variant in $(COMPARED); do \
	  $(BIN)/python -m pipeline.download variant=$$variant $(SOURCE) artifacts=$(LIVE) && \
	  $(REFERENCE)/bin/python tests/reference/make_golden.py \
	    $(LIVE)/$$variant/checkpoint $(LIVE)/$$variant/golden.npz --frames $(FRAMES) || exit 1; \
	done
	PARITY=$(LIVE) $(BIN)/pytest tests/parity

golden:
	$(MAKE) parity SIZE=tiny
	$(MAKE) parity SIZE=mini
	for golden in tests/golden/*.npz; do \
	  cp build/parity/*/$$(basename $$golden .npz)/golden.npz $$golden || exit 1; \
	done

edges: setup
	EDGES=1 OMP_NUM_THREADS=1 $(BIN)/pytest tests/edges

VARIANT ?= tiny-custom-voice
PRECISION ?= int8
LAYOUTS ?=
CELL ?= $(VARIANT)-$(PRECISION)
comma := ,
empty :=
list = [$(subst $(empty) $(empty),$(comma),$(strip $(1)))]

# Cells of conf/, whether or not params.yaml names them, are built in a view of this project that shares all but
# params.yaml: artifacts/, dvc.lock and DVC's cache. CELL may also be a variant, for what its cells share.
VIEW = build/cells
view: setup remote
	@$(BIN)/python -m pipeline.fleet.view '$(or $(VARIANTS),$(VARIANT))' '$(or $(PRECISIONS),$(PRECISION))' '$(LAYOUTS)'

# With a remote, only what no machine has built yet is built, and only its inputs are fetched.
cell: view
	$(if $(REMOTE),cd $(VIEW) && $(CURDIR)/$(BIN)/python -m pipeline.fleet.build_group \
	  'cells=$(call list,$(CELL) $(LAYOUTS:%=%-$(CELL)))',\
	  $(BIN)/dvc --cd $(VIEW) repro smoke@$(CELL) $(LAYOUTS:%=layout_smoke@%-$(CELL)))

remote: setup
	$(if $(REMOTE),@$(BIN)/dvc remote add --quiet --local --force --default shared $(REMOTE))

CELLS ?= *
ADDRESS ?=
fleet: setup remote
	$(BIN)/python -m pipeline.fleet 'cells=$(CELLS)' $(if $(ADDRESS),address=$(ADDRESS))
	$(BIN)/python -m pipeline.report

plan: $(if $(VARIANTS)$(PRECISIONS),view,remote)
	@cd $(if $(VARIANTS)$(PRECISIONS),$(VIEW),.) && $(CURDIR)/$(BIN)/python -m pipeline.fleet.plan 'cells=$(CELLS)'

TO ?=
publish: setup
	for layout in native $(LAYOUTS); do \
	  $(BIN)/python -m pipeline.publish variant=$(VARIANT) precision=$(PRECISION) layout=$$layout $(TO) || exit 1; \
	done

summary: setup
	@$(BIN)/python -m pipeline.summary

# The bundles are cells like any other; benchmarks/dvc.yaml measures them.
BENCH = synthetic-0.6b-custom-voice synthetic-1.7b-custom-voice
export ENGINE ?= build/engine
export REFERENCE
export ROUNDS ?= 7

bench:
	$(MAKE) view VARIANTS="$(BENCH)" PRECISIONS="int8 int4" LAYOUTS=openarc
	$(BIN)/dvc --cd $(VIEW) repro $(BENCH:%=bundle@%-int8) bundle@$(firstword $(BENCH))-int4 \
	  layout_bundle@openarc-$(firstword $(BENCH))-int8
	$(BIN)/dvc repro benchmarks/dvc.yaml

voices:
	$(MAKE) view VARIANTS=$(firstword $(BENCH)) PRECISIONS=int8
	$(BIN)/dvc --cd $(VIEW) repro bundle@$(firstword $(BENCH))-int8
	$(BIN)/python -m benchmarks.many_voices artifacts/$(firstword $(BENCH))/int8/bundle --rounds $(ROUNDS)

RELEASES ?=
openvino: setup
	$(BIN)/dvc repro $(foreach kind,base custom-voice voice-design,\
	  $(foreach precision,fp16 int8 int4,bundle@tiny-$(kind)-$(precision)))
	$(BIN)/python -m benchmarks.openvino_releases $(RELEASES)

# OPENARC is a checkout with its environment in .venv, OPTIMUM an environment with optimum-intel and qwen-tts.
SPOKEN = $(or $(VARIANTS),tiny-base tiny-custom-voice tiny-voice-design)
runtimes: export OPENARC := $(OPENARC)
runtimes: export OPTIMUM := $(OPTIMUM)
runtimes: setup
	for variant in $(SPOKEN); do $(MAKE) cell VARIANT=$$variant LAYOUTS="$(or $(LAYOUTS),openarc genai)" || exit 1; done
	CELLS="$(SPOKEN:%=%/$(PRECISION))" $(BIN)/pytest -rs tests/programs/prove_programs.py

sweep: setup
	$(BIN)/dvc repro rollout@mini-custom-voice
	$(BIN)/python -m benchmarks.sweep

sample: setup
	$(BIN)/dvc repro bundle@mini-custom-voice-int8
	$(BIN)/qwen3-tts-ov say artifacts/mini-custom-voice/int8/bundle --language english --seed 0 -o docs/hello.flac \
	  "Hello. I am a small voice, and I live in this repository."

CHROMIUM ?= chromium
screenshot: setup
	$(BIN)/dvc repro bundle@mini-custom-voice-int8
	$(BIN)/python -m tests.screenshot artifacts/mini-custom-voice/int8/bundle docs/page.png
	$(BIN)/python -m pipeline.report
	$(CHROMIUM) --headless --no-sandbox --hide-scrollbars --window-size=800,885 --screenshot=docs/report.png \
	  file://$(abspath artifacts)/report.html

workflows:
	actionlint

setup: $(VENV)/.installed

# With uv if it is on the PATH, else with pip. On Linux both install torch with gigabytes of CUDA by default;
# UV_TORCH_BACKEND=cpu for uv and PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for pip avoid that.
UV := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install) --quiet --constraint constraints.txt

# The stamp is written last: an interrupted installation is repeated.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with $(if $(UV),uv,pip); the first time takes a few minutes"
	$(if $(UV),$(UV) venv --quiet --allow-existing --python '$(if $(filter-out python3,$(PYTHON)),$(PYTHON),>=3.11)' $(VENV),\
	  @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; set PYTHON=")' && \
	  { $(PYTHON) -c 'import ensurepip, venv' || { echo "error: this Python has no venv; apt install python3-venv" >&2; exit 1; }; } && \
	  $(PYTHON) -m venv $(VENV))
	$(INSTALL) --editable '.[serve,build,release,fleet,dev]'
	@# For the score stage. Only the weights of Resemblyzer are used: its dependencies are large and partly broken.
	$(INSTALL) --no-deps Resemblyzer
	@$(INSTALL) pesq 2>/dev/null || \
	  echo "pesq was not installed: it needs a C compiler and Python's headers. Only the score stage uses it."
	@# DVC must be told where there is no git repository, as in an unpacked archive.
	@git rev-parse --git-dir > /dev/null 2>&1 || $(BIN)/dvc config --local core.no_scm true
	@touch $@

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test check lint types audit bench-replay bench-honest bench-anomalies bench-accuracy bench-speed fixtures goldens clean

# The tool on a real archive: which hospital drove this wrong prediction?
demo: $(VENV)/.runs
	cd fixtures/digits && ../../$(BIN)/flforensics trace --round 12 input.png

test: $(VENV)/.develops
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST)

check: lint types test

lint: $(VENV)/.develops
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.develops
	$(BIN)/mypy

# make audit ARCHIVE=folder ROUND=12 INPUTS='a.png b.png' OUT=report
# Writes inspect, replay and trace as JSON and CSV; fails if any of them finds something.
audit: $(VENV)/.runs
	@test -n "$(ARCHIVE)" -a -n "$(ROUND)" -a -n "$(INPUTS)" -a -n "$(OUT)" || \
	  { echo "usage: make audit ARCHIVE=folder ROUND=12 INPUTS='a.png b.png' OUT=report" >&2; exit 2; }
	@mkdir -p "$(OUT)"; status=0; \
	for command in inspect replay "trace --round $(ROUND) $(INPUTS)"; do \
	  name="$(OUT)/$${command%% *}"; \
	  $(BIN)/flforensics $$command --archive "$(ARCHIVE)" --output "$$name.json" --output "$$name.csv" || \
	    { status=$$?; echo "audit: $${command%% *} ended with status $$status" >&2; }; \
	done; exit $$status

# Memory and time of replaying 50 clients of a ResNet-18, beside hashing the files once (2.3 GB on disk).
bench-replay: $(VENV)/.develops
	$(BIN)/python -m tests.bench.replay compare

# Our methods beside the paper's loop and the machine's limit, on two quiet cores (SCALE=quick: a few minutes).
SCALE  ?= default
DEVICE ?= cpu
bench-speed: $(VENV)/.develops
	$(BIN)/python -m tests.bench.speed compare --scale $(SCALE) --device $(DEVICE)

# Random honest rounds, none of which may be called inconsistent, and the indicators' false alarms.
bench-honest: $(VENV)/.develops
	$(BIN)/python -m tests.bench.honest

bench-anomalies: $(VENV)/.develops
	$(BIN)/python -m tests.bench.anomalies

# make bench-accuracy DATA=folder [ARGS='--scale full']
# How often each method is right, on federations with known culprits (default scale: two cores, under an hour).
bench-accuracy: $(VENV)/.develops
	@test -n "$(DATA)" || { echo "usage: make bench-accuracy DATA=folder [ARGS='--scale full']" >&2; exit 2; }
	$(BIN)/python -m tests.bench.accuracy --data "$(DATA)" $(ARGS)

# Run the federations again that made the archives in fixtures/ (needs Flower; see fixtures/README.md).
fixtures: $(VENV)/.develops
	$(BIN)/python -m pip install --quiet --editable '.[fixtures]'
	$(BIN)/python fixtures/make_digits.py
	$(BIN)/python fixtures/make_text.py

# Write the expected outputs of the commands anew; read the difference before committing it.
goldens: $(VENV)/.develops
	$(BIN)/python -m pytest tests/cli --update-goldens

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.exists:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flforensics needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.runs: pyproject.toml $(VENV)/.exists
	@echo 'Installing into $(VENV): torch is large, so the first time takes a few minutes ...'
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.develops: pyproject.toml $(VENV)/.runs
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

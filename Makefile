# The commands of the README. Everything happens in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
ASCL := $(VENV)/bin/ascl
DEMO := runs/demo

.PHONY: demo test lint docs bench clean-demo

$(VENV)/installed: setup.py pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('Python 3.10 or newer is needed, this is ' + sys.version) if sys.version_info < (3, 10) else None"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(ASCL) prepare --dataset scenes
	if test -e $(DEMO)/last.pt; then $(ASCL) train --resume $(DEMO); \
	else $(ASCL) train --dataset scenes --out $(DEMO); fi
	$(ASCL) eval --checkpoint $(DEMO)
	$(ASCL) report $(DEMO)

clean-demo:
	rm -rf $(DEMO)

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -q

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m mypy

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

bench: $(VENV)/installed
	$(RUN) benchmarks/bench_scoring.py
	$(RUN) benchmarks/bench_training.py

# Each of these is enough on a machine that has only Python (3.11 or newer) and make:
#   make demo    a small model trained on real digits, its audit, samples that prove it, a report
#   make quick   style, types, import rules and the tests that are fast: under 90 seconds on two idle cores once the
#                environment is there, for daily work
#   make test    all of it, which CI runs: about 23 minutes on two idle cores

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# the tests of `make quick`: they train nothing and start no Ray
QUICK ?= tests/test_house.py tests/test_config.py tests/numerics tests/theory tests/sources tests/audit/output \
  tests/audit/engine/test_ledger.py
DEMO ?= demo-output

.PHONY: demo quick lint test browser clean

demo: $(VENV)/installed
	$(BIN)/volgrowth demo --output $(DEMO)

test: lint browser
	$(BIN)/pytest

quick: lint
	$(BIN)/pytest -m "not slow and not ray and not gpu" $(QUICK)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch first and by its pinned name, so that where an index offers a build for this machine it is the one taken
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[text,heif]"
	touch $@

$(VENV)/installed-test: $(VENV)/installed tests/adapters.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps --requirement tests/adapters.txt || \
	  echo "make: the libraries of tests/adapters.txt could not be installed: the tests that need them are skipped" >&2
	touch $@

# tests/report/test_browser.py looks at the report in Debian's chromium
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  as_root=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
	  $$as_root apt-get -qq update && \
	  $$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends chromium fonts-dejavu-core; \
	} || echo "make: no chromium, and it could not be installed: tests/report/test_browser.py needs it" >&2

clean:
	rm -rf $(VENV) $(DEMO)

# AI Worker from a fresh clone. Needs Python 3.11 or later and make; installs the rest: Python packages into .venv, and, where they
# are missing, MariaDB's server programs and, for the tests, Chromium and promtool by apt (no service is started, no existing database is
# touched).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICKSTART ?= $(CURDIR)/.quickstart

.PHONY: help
help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: $(VENV)/.installed .server ## watch sample rows being corrected, in a private database, without an API key
	@$(BIN)/ai-worker quickstart --folder "$(QUICKSTART)"

.PHONY: prepare
prepare: $(VENV)/.installed-dev .server .browser .promtool .spin ## install what the tests need, and nothing else

.PHONY: test
test: lint prepare ## lint, then all tests, on MariaDB and (where AI_WORKER_TEST_MYSQL_URL names one) on MySQL
	@$(BIN)/pytest $(PYTEST)

SERVER ?=
SEED ?=
chaos = AI_WORKER_TEST_SERVER="$(or $(SERVER),mariadb)" AI_WORKER_TEST_SEED="$(SEED)"

.PHONY: chaos
chaos: prepare .faults ## faults of every kind, alone and all at once, below 20 minutes; SERVER=mysql, SEED=... for another server, the same chance
	@$(chaos) $(BIN)/pytest -m "chaos or not chaos" tests/chaos $(PYTEST)

.PHONY: chaos-soak
chaos-soak: prepare ## 30 minutes at full speed: nothing may grow that should not; SERVER=mysql
	@$(BIN)/python -m tests.chaos.soak --minutes 30 $(if $(SERVER),--server $(SERVER)) $(if $(SEED),--seed $(SEED)) $(CHAOS)

.PHONY: chaos-model
chaos-model: prepare ## the protocol against its model, 2,000 random examples on each server at hand; SERVER=... on one
	@$(BIN)/python -m tests.chaos.model $(if $(SERVER),--server $(SERVER)) $(if $(SEED),--seed $(SEED)) $(CHAOS)

.PHONY: chaos-mutations
chaos-mutations: prepare ## break the protocol on purpose, in thirty ways: each must be noticed
	@$(BIN)/python -m tests.chaos.mutations $(if $(SERVER),--server $(SERVER)) $(if $(SEED),--seed $(SEED)) $(CHAOS)

.PHONY: chaos-galera
chaos-galera: prepare .faults .galera ## a Galera cluster of three: each fault, then twice five minutes with a node killed every 20 s
	@$(BIN)/pytest tests/chaos/test_galera.py $(PYTEST)
	@$(BIN)/python -m tests.chaos.galera_run --writers many $(if $(SEED),--seed $(SEED)) $(CHAOS)
	@$(BIN)/python -m tests.chaos.galera_run --writers one $(if $(SEED),--seed $(SEED)) $(CHAOS)

.PHONY: test-windows
test-windows: prepare .wine ## what can be tried of Windows under wine: the commands, and NSSM; fetches a Windows Python into .windows
	@$(BIN)/pytest -m windows tests/windows $(PYTEST)

.PHONY: lint
lint: $(VENV)/.installed-dev ## ruff, mypy --strict, mypy as on Windows, import contracts
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/mypy --config-file tests/mypy-windows.ini
	@$(BIN)/lint-imports --no-logo

# In an environment of its own: what looks for holes is not to be one of the dependencies.
.PHONY: audit
audit: $(VENV)/.installed-dev ## known holes in what is installed (pip-audit; asks pypi.org about each package)
	@[ -x "$(VENV)-audit/bin/pip-audit" ] || { $(BIN)/python -m venv "$(VENV)-audit" && "$(VENV)-audit/bin/pip" install -qq pip-audit; }
	@"$(VENV)-audit/bin/pip-audit" --strict --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

.PHONY: bench
bench: prepare ## all benchmarks, on private databases (hours; one alone: python -m bench.NAME); BENCH=... passes options on
	@$(BIN)/python -m bench $(BENCH)

.PHONY: clean
clean: ## remove what make has made, the quickstart's database too
	@rm -rf "$(VENV)" "$(VENV)-maker" "$(VENV)-audit" "$(QUICKSTART)" .windows dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# The stamps are newer than pyproject.toml when the environment has what it names. The one for tests stands for the other too.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing AI Worker into $(VENV)"
	@$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing AI Worker and its test tools into $(VENV)"
	@$(call install,.[dev])
	@touch $(VENV)/.installed $@

# pip takes for installed what an interrupted pip left half written: then the environment is made anew.
install = if [ -e "$(VENV)/.installing" ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
    rm -rf "$(VENV)"; $(MAKE) "$(BIN)/python"; fi; \
  touch "$(VENV)/.installing"; \
  $(BIN)/python -m pip install -qq --disable-pip-version-check --editable '$(1)'; \
  rm "$(VENV)/.installing"

# Debian splits ensurepip off into python3-venv; virtualenv brings what is missing, without root.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv "$(VENV)"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then $(call apt,python3-venv) && $(PYTHON) -m venv "$(VENV)"; \
	elif $(PYTHON) -m pip install --quiet --target "$(VENV)-maker" virtualenv; then \
	  PYTHONPATH="$(VENV)-maker" $(PYTHON) -m virtualenv --quiet "$(VENV)"; rm -rf "$(VENV)-maker"; \
	else echo "No way to make a virtual environment. As root: apt-get install python3-venv" >&2; exit 1; fi

# A server program, for private databases only. Nothing to do where one is installed, which needs no root.
.PHONY: .server
.server:
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; \
	if ! command -v mariadbd >/dev/null && ! command -v mysqld >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then $(call apt,mariadb-server-core mariadb-client-core); \
	  else echo "No database server program found. As root: apt-get install --no-install-recommends mariadb-server-core mariadb-client-core" >&2; exit 1; fi; \
	fi

# A browser, for the tests of the results page alone: without one they are skipped, and say so.
.PHONY: .browser
.browser:
	@if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ( $(call apt,chromium) ); then :; \
	  else echo "No Chromium: the results page is not tried in a browser. As root: apt-get install --no-install-recommends chromium" >&2; fi; \
	fi

# Prometheus's checker of metrics and alert rules, out of Debian's package, which is not installed: no root is needed, no service comes.
.PHONY: .promtool
.promtool: | $(VENV)/.installed-dev
	@if command -v promtool >/dev/null || [ -x "$(VENV)/tools/promtool" ]; then :; \
	elif ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then \
	  echo "No promtool and no apt to fetch it with: metrics and alert rules are not checked by Prometheus itself."; \
	else $(call fetch,prometheus,usr/bin/promtool,metrics and alert rules are not checked by Prometheus itself); fi

# The checker of the protocol's model, out of Debian's package in the same way. It writes C: without a compiler its tests are skipped.
.PHONY: .spin
.spin: | $(VENV)/.installed-dev
	@if command -v spin >/dev/null || [ -x "$(VENV)/tools/spin" ]; then :; \
	elif ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then \
	  echo "No spin and no apt to fetch it with: the model of the protocol is not checked."; \
	else $(call fetch,spin,usr/bin/spin,the model of the protocol is not checked); fi

# Galera's library, and the scripts by which a node gets its data from another one: these out of MariaDB's package for servers, which
# is not installed, since it would start a service.
.PHONY: .galera
.galera: | $(VENV)/.installed-dev
	@if [ ! -e /usr/lib/galera/libgalera_smm.so ] && [ ! -e /usr/lib64/galera-4/libgalera_smm.so ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then $(call apt,galera-4); \
	  else echo "No Galera. As root: apt-get install --no-install-recommends galera-4" >&2; exit 1; fi; \
	fi
	@if command -v wsrep_sst_rsync >/dev/null || [ -x "$(VENV)/tools/wsrep/wsrep_sst_rsync" ]; then :; \
	else echo "fetching Galera's scripts"; folder=$$(mktemp -d); \
	  if { cd "$$folder" && apt-get -o APT::Sandbox::User=root download -qq mariadb-server && dpkg -x mariadb-server_*.deb files \
	    && mkdir -p "$(abspath $(VENV))/tools/wsrep" \
	    && mv files/usr/bin/wsrep_sst_* "$(abspath $(VENV))/tools/wsrep/"; } >"$$folder/log" 2>&1; then rm -rf "$$folder"; \
	  else cat "$$folder/log" >&2; rm -rf "$$folder"; exit 1; fi; \
	fi

# What the faults are made with. Without one of them its tests are skipped, and say so.
.PHONY: .faults
.faults:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for each in ip:iproute2 nft:nftables spin:spin rsync:rsync socat:socat; do \
	  command -v "$${each%%:*}" >/dev/null || missing="$$missing $${each#*:}"; done; \
	ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || missing="$$missing libfaketime"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ( $(call apt,$$missing) ); then :; \
	else echo "Missing, and their tests with them:$$missing. As root: apt-get install --no-install-recommends$$missing" >&2; fi

# Windows programs' ground, and what makes the one library that older versions of it lack.
.PHONY: .wine
.wine:
	@if ! command -v wine >/dev/null || ! command -v x86_64-w64-mingw32-ld >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then $(call apt,wine wine64 binutils-mingw-w64-x86-64); \
	  else echo "No wine. As root: apt-get install --no-install-recommends wine wine64 binutils-mingw-w64-x86-64" >&2; exit 1; fi; \
	fi

# One program out of a Debian package, which is not installed: package, path in it, what is missing without it.
fetch = echo "fetching $(notdir $(2))"; folder=$$(mktemp -d); \
  if { { [ "$$(id -u)" != 0 ] || apt-get update -qq; } && cd "$$folder" && apt-get -o APT::Sandbox::User=root download -qq $(1) \
    && dpkg -x $(1)_*.deb files && mkdir -p "$(abspath $(VENV))/tools" \
    && mv files/$(2) "$(abspath $(VENV))/tools/$(notdir $(2))"; } >"$$folder/log" 2>&1; then :; \
  else cat "$$folder/log" >&2; echo "No $(notdir $(2)): $(3)." >&2; fi; \
  rm -rf "$$folder"

# Quiet unless it fails.
apt = { echo "installing $(1)"; log=$$(mktemp); \
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1); } >"$$log" 2>&1 \
  || { cat "$$log" >&2; rm -f "$$log"; exit 1; }; rm -f "$$log"; }

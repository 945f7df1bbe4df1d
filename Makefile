# `make demo` shows Atoll at work; `make test` proves it. Both make the machine ready first.
PY := .venv/bin/python

.PHONY: help setup setup-tests test unit lint demo soak bench bench-main bench-hold bench-storage bench-island bench-repo bench-recovery bench-san bench-ceph bench-cinder_rbd agent lock clean
help:            ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | column -t -s "$$(printf '\t')"

setup:           ## install packages and the virtual environment from the lock file
	@sh scripts/setup

setup-tests: setup
	@sh scripts/setup tests
	@sh scripts/cinder-sidecar

lint: setup      ## style, types and layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

unit: setup      ## the quick tests
	.venv/bin/pytest -q tests/unit

test: lint setup-tests ## everything but the long repeats
	@sh scripts/test

soak: setup-tests ## the long repeats
	.venv/bin/pytest -m soak

demo: setup      ## a site in a box, backed up, restored and proven; ends with a report
	$(PY) -m atoll_lab.demo

bench: bench-main bench-hold bench-storage bench-island ## every benchmark

bench-main: setup ## figures of the main job, with an in-guest agent beside it
	$(PY) -m bench.main

bench-hold: setup ## figures of holds: one, ten and a hundred guests
	$(PY) -m bench.hold

bench-storage: setup ## figures of the embedded storage engine
	$(PY) -m bench.storage

bench-island: setup-tests ## figures of a run mounted, exported and shown on the island
	$(PY) -m bench.island

bench-repo: setup-tests ## figures of the repository beside restic, Borg and cp
	$(PY) -m bench.repo

bench-recovery: setup-tests ## figures of file catalogues and searches
	$(PY) -m bench.recovery

bench-san bench-ceph bench-cinder_rbd: bench-%: setup-tests ## figures of another engine, on a system made for it
	$(PY) -m bench.$*

agent: setup     ## build the agent as one file: build/atoll-agent.pyz
	$(PY) -m atoll.guests.package build/atoll-agent.pyz

lock:            ## refresh requirements.lock from pyproject.toml
	uv pip compile -q --generate-hashes --no-header --python-version 3.11 --extra dev pyproject.toml -o requirements.lock
	cd sidecars/cinder && uv pip compile -q --generate-hashes --no-header --python-version 3.11 requirements.in -o requirements.lock

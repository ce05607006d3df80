# The front door. `make` alone prints what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build run demo-vm test bench bench-clients check full format clean

help:  ## this table
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## install what the build and the tests need and this machine lacks (Debian 12)
	@scripts/setup

build: setup  ## build the command, the shim and the library; leaves the command at build/release/uffda
	@scripts/build release product

run: build  ## the main job: an unmodified sqlite3 queries a real database through `uffda exec`
	@scripts/demo.sh

demo-vm: build  ## a Linux guest in QEMU: saved to a pack, restored by clones that share its RAM
	@scripts/demo-vm.sh

test: setup  ## every suite; prints what was skipped and why, and a line of totals
	@scripts/build release
	@scripts/run-tests release

bench: build  ## the benchmarks: a table, and JSON in build/bench/
	@scripts/build release benches
	@bench/run.sh

bench-clients: build  ## the benchmarks of real clients (virtual machines, containers): the same table, in build/bench/clients/
	@scripts/build release benches
	@bench/clients/run.sh

check: setup  ## format, layering, left-overs, tidy of what changed
	@scripts/check

full: setup  ## what takes long, in parts that can be resumed: long fuzzing, all of tidy, bench, demo
	@scripts/full

format:  ## rewrite the sources in the project's format
	@scripts/format

clean:  ## remove build/
	@rm -rf build

# One command each; `make help` lists them.
.PHONY: help build demo test check unit e2e powercut rot bench clean
CARGO ?= cargo
PLIANT = target/release/pliant

help:           ## List the commands
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build:          ## Build the release binary
	$(CARGO) build --release --locked -p pliant

demo: build     ## The main job, live: one volume changed and failed over under load (INPUT=dir or file)
	$(PLIANT) demo --dir target/demo $(if $(INPUT),--input $(INPUT),)

test:           ## Everything a change must pass; installs what it needs
	tests/run.sh

check:          ## Formatting, lints and house rules
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) check --quiet --locked -p sim
	$(CARGO) run --quiet --locked -p xtask -- tidy

unit:           ## Unit, property and scenario tests
	$(CARGO) test --workspace --locked

e2e: build      ## Real processes and real clients (installs what they need)
	tests/run.sh e2e

powercut: build ## Cut the power of a whole service at 240 moments (POWERCUT="--points 1000 --seed 7")
	tests/run.sh powercut $(POWERCUT)

rot: build      ## Flip bits on the drives of a whole service (ROT="--mib 8192 --rounds 10 --seed 7")
	tests/run.sh rot $(ROT)

bench: build    ## Side by side with other systems on the same disk
	tests/bench.sh

clean:          ## Remove what was built
	$(CARGO) clean

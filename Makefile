# make demo and make test set up everything they need in .venv; python3 with venv must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= test
MAP := nerfmatch_ros/demo_map
ROOM := out/demo_room

ENVIRONMENT := $(VENV)/.environment-ready
INSTALLED := $(VENV)/.package-installed
RECIPE := $(wildcard requirements/*.txt) $(wildcard tools/*.sh tools/*.py tools/tf2_msgs/*/*)
PACKAGE := $(wildcard setup.py setup.cfg package.xml resource/* scripts/*) \
    $(wildcard launch/* config/*) $(shell find nerfmatch_ros -type f ! -name "*.pyc")

# Tests and demo talk over ROS only within this machine.
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST

.PHONY: demo test lint format demo-map setup clean

demo: $(INSTALLED)
	$(BIN)/nerfmatch demo

test: $(INSTALLED)
	$(BIN)/python -m pytest $(TESTS)

lint: $(ENVIRONMENT)
	$(BIN)/ruff check .

format: $(ENVIRONMENT)
	$(BIN)/ruff check --fix .

# The map that the demo uses, made by the command a user makes maps with.
demo-map: $(INSTALLED)
	$(BIN)/python tools/make_demo_room.py $(ROOM)
	rm -rf out/demo_map
	$(BIN)/nerfmatch build --images $(ROOM) --output out/demo_map --config config/demo_map.yaml
	rm -rf $(MAP)
	cp -r out/demo_map $(MAP)
	rm $(MAP)/field.png

setup: $(INSTALLED)

$(ENVIRONMENT): $(RECIPE)
	PYTHON=$(PYTHON) tools/setup_environment.sh $(VENV)
	touch $@

# A plain install, because an editable one leaves out what ROS looks for in share/ and lib/.
$(INSTALLED): $(ENVIRONMENT) $(PACKAGE)
	rm -rf build nerfmatch_ros.egg-info
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --no-build-isolation --force-reinstall .
	touch $@

clean:
	rm -rf $(VENV) build nerfmatch_ros.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

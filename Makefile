# penstock. `make help` lists the targets; V=1 shows the commands, WERROR=1 makes warnings errors.

VERSION := 0.1.0
prefix  ?= /usr/local
DESTDIR ?=
sysconfdir  ?= /etc
unitdir     ?= $(prefix)/lib/systemd/system
sysusersdir ?= $(prefix)/lib/sysusers.d
tmpfilesdir ?= $(prefix)/lib/tmpfiles.d
completions ?= $(prefix)/share/bash-completion/completions

MAKEFLAGS += --no-builtin-rules
comma := ,
.SUFFIXES:
.SECONDARY:
.DELETE_ON_ERROR:

Q   := $(if $(V),,@)
jobs = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))
sub  = $(Q)+$(MAKE) $(if $(V),,--silent) --no-print-directory $(jobs)
say  = $(if $(V),,@printf '  %-6s %s\n' $(1) $@)

# --- what is compiled, and how ------------------------------------------------------------------

LIBRARIES := libevent_core libconfuse libsystemd jansson libssl libcrypto zlib libzstd libcurl
PKG_CONFIG := pkg-config
lib_cflags := $(shell $(PKG_CONFIG) --cflags $(LIBRARIES) 2>&1 || echo MISSING)
lib_libs   := $(shell $(PKG_CONFIG) --libs $(LIBRARIES) 2>&1 || echo MISSING)
# No pkg-config file comes with it.
lib_libs   += -lhttp_parser

ifeq ($(filter-out deps deps-% help clean check demo lint cover mutants bench fuzz soak deb deb-check,$(or $(MAKECMDGOALS),all)),)
else ifneq ($(filter MISSING,$(lib_cflags)),)
$(error libraries are missing; 'make deps' installs them ($(lib_cflags)))
endif

WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes \
	-Wmissing-prototypes -Wvla -Wformat=2 -Wundef -Wwrite-strings $(if $(WERROR),-Werror)
# For names in quotes only: <limits.h> is not ours.
CPPFLAGS := -D_GNU_SOURCE -DPENSTOCK_VERSION='"$(VERSION)"' -idirafter src $(lib_cflags)
CFLAGS   := -std=c11 -pthread -fPIE $(WARNINGS)
LDFLAGS  := -pthread -pie -Wl,--as-needed,-z,relro,-z,now
LDLIBS   := $(lib_libs)

sources := $(wildcard src/*.c src/filters/*.c src/services/*.c)
library := $(filter-out src/main.c,$(sources))
units   := $(patsubst tests/unit/%.c,%,$(wildcard tests/unit/test_*.c))
# A program of one thread has nothing that the thread sanitizer could find.
threaded := $(patsubst tests/unit/%.c,%,$(shell grep -l 'pthread_create\|loader_begin\|log_start\|resolver_start\|workers_start' $(wildcard tests/unit/test_*.c)))
fuzzers := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
loads   := $(wildcard bench/*.c)
control := $(wildcard ctl/*.c)

# $(call variant,folder,compiler,flags): folder/penstockd and folder/unit/test_* from folder/obj.
define variant
$(1)/obj/%.o: %.c Makefile
	@mkdir -p $$(@D)
	$$(call say,CC)
	$$(Q)$(2) $$(CPPFLAGS) $$(CFLAGS) $(3) -MD -MP -c $$< -o $$@

# Stands inside of it.
$(1)/obj/src/services/admin_page.o: src/services/page.html

$(1)/libpenstock.a: $$(library:%.c=$(1)/obj/%.o)
	$$(call say,AR)
	$$(Q)rm -f $$@ && ar rcs $$@ $$^

$(1)/penstockd: $(1)/obj/src/main.o $(1)/libpenstock.a
	$$(call say,LINK)
	$$(Q)$(2) $$(LDFLAGS) $(3) $$^ $$(LDLIBS) -o $$@

$(1)/penstockctl: $$(control:%.c=$(1)/obj/%.o) $(1)/obj/src/nearest.o $(1)/obj/src/standard_streams.o
	$$(call say,LINK)
	$$(Q)$(2) $$(LDFLAGS) $(3) $$^ $$(LDLIBS) -o $$@

$(1)/unit/%: $(1)/obj/tests/unit/%.o $(1)/libpenstock.a
	@mkdir -p $$(@D)
	$$(call say,LINK)
	$$(Q)$(2) $$(LDFLAGS) $(3) $$^ $$(LDLIBS) -lcmocka -o $$@

.PHONY: units-$(1)
units-$(1): $$($(if $(findstring tsan,$(1)),threaded,units):%=$(1)/unit/%)

-include $$(wildcard $(1)/obj/*/*.d $(1)/obj/*/*/*.d)
endef

# What is shipped: hardened. The test variants carry the test doubles.
hardened := -O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong
testing  := -DPENSTOCK_TEST_DOUBLES -O1 -g -fno-omit-frame-pointer -Werror

$(eval $(call variant,build,gcc,$(hardened)))
$(eval $(call variant,build/asan,clang,$(testing) -fsanitize=address$(comma)undefined -fno-sanitize-recover=all))
$(eval $(call variant,build/tsan,clang,$(testing) -fsanitize=thread))
$(eval $(call variant,build/cover,gcc,-O1 -g --coverage -fprofile-update=atomic))
$(eval $(call variant,build/fuzz,clang,$(testing) -fsanitize=fuzzer-no-link$(comma)address$(comma)undefined -fno-sanitize-recover=all))

# --- targets ------------------------------------------------------------------------------------

.DEFAULT_GOAL := all
.PHONY: all debug check lint bench fuzz soak cover mutants install install-etc deb deb-check demo deps clean help

all: build/penstockd build/penstockctl ## build/penstockd and build/penstockctl

debug: build/asan/penstockd build/asan/penstockctl build/tsan/penstockd build/tsan/penstockctl ## build/asan/ and build/tsan/: clang's sanitizers

check: deps-test ## everything a change must pass: unit, contract and end-to-end tests
	$(sub) WERROR=1 all debug bench-load units-build units-build/asan units-build/tsan
	$(Q)tools/check $(threaded)

lint: deps-test ## form, headers, include directions, documentation, cppcheck, clang-tidy
	$(sub) all
	$(Q)tools/lint

demo: deps-demo ## penstockd with conf/demo.conf and real traffic; ONCE=1 ends by itself
	$(sub) all
	$(Q)tools/demo $(if $(ONCE),--once)

bench: deps-bench ## penstockd beside its peers, into bench/RESULTS.md (takes long)
	$(sub) all bench-load
	$(Q)bench/run

fuzz: deps-test ## each fuzzer for a minute (FUZZ_SECONDS=60)
	$(sub) $(fuzzers:%=build/fuzz/%)
	$(Q)tools/fuzz $(or $(FUZZ_SECONDS),60) $(fuzzers)

soak: deps-test ## mixed load, reloads, vanishing clients for ten minutes (SOAK_SECONDS=600)
	$(sub) all
	$(Q)tests/soak/soak.py $(or $(SOAK_SECONDS),600)

cover: deps-test ## which lines the tests run
	$(sub) build/cover/penstockd units-build/cover
	$(Q)tools/cover

mutants: deps-test ## a list of one-line faults, each of which the tests must catch
	$(Q)tools/mutants

install: all ## into $(DESTDIR)$(prefix)
	install -D -m 755 build/penstockd $(DESTDIR)$(prefix)/sbin/penstockd
	install -D -m 755 -t $(DESTDIR)$(prefix)/bin build/penstockctl
	install -D -m 644 ctl/completion.bash $(DESTDIR)$(prefix)/share/bash-completion/completions/penstockctl
	install -D -m 644 -t $(DESTDIR)$(prefix)/share/man/man1 man/penstockctl.1
	install -D -m 644 -t $(DESTDIR)$(prefix)/share/man/man5 man/penstock.conf.5
	install -D -m 644 -t $(DESTDIR)$(prefix)/share/man/man7 man/penstock.7
	install -D -m 644 -t $(DESTDIR)$(prefix)/share/man/man8 man/penstockd.8
	install -D -m 644 -t $(DESTDIR)$(prefix)/share/doc/penstock doc/*.md
	install -D -m 644 -t $(DESTDIR)$(prefix)/share/doc/penstock/examples conf/*.conf
	install -d $(DESTDIR)$(unitdir)
	sed 's|/usr/sbin/|$(prefix)/sbin/|' packaging/penstock.service >$(DESTDIR)$(unitdir)/penstock.service
	chmod 644 $(DESTDIR)$(unitdir)/penstock.service
	install -D -m 644 -t $(DESTDIR)$(unitdir) packaging/penstock.socket
	install -D -m 644 packaging/sysusers.conf $(DESTDIR)$(sysusersdir)/penstock.conf
	install -D -m 644 packaging/tmpfiles.conf $(DESTDIR)$(tmpfilesdir)/penstock.conf
	install -D -m 644 packaging/completion.bash $(DESTDIR)$(completions)/penstockd

install-etc: ## a first configuration if there is none, logrotate, AppArmor into $(DESTDIR)$(sysconfdir)
	[ -e $(DESTDIR)$(sysconfdir)/penstock/penstock.conf ] || \
		install -D -m 644 packaging/minimal.conf $(DESTDIR)$(sysconfdir)/penstock/penstock.conf
	install -D -m 644 packaging/logrotate $(DESTDIR)$(sysconfdir)/logrotate.d/penstock
	install -d $(DESTDIR)$(sysconfdir)/apparmor.d
	sed 's|/usr/sbin/penstockd|$(prefix)/sbin/penstockd|' packaging/apparmor.profile \
		>$(DESTDIR)$(sysconfdir)/apparmor.d/usr.sbin.penstockd
	chmod 644 $(DESTDIR)$(sysconfdir)/apparmor.d/usr.sbin.penstockd

deb: deps-deb ## Debian packages, into build/deb; lintian has nothing to say
	$(Q)tools/deb $(VERSION)

deb-check: deb ## installs, upgrades, removes and purges them under a real systemd
	$(Q)cd tests/deb && /usr/bin/python3 -m pytest -q .

deps: deps-test ## install the Debian packages that are missing (packaging/deps)

deps-test:
	$(Q)tools/deps build demo test
deps-demo:
	$(Q)tools/deps build demo
deps-deb:
	$(Q)tools/deps build deb
deps-bench:
	$(Q)tools/deps build demo test bench

clean: ## remove build/
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 13

.PHONY: deps-test deps-demo deps-deb deps-bench bench-load

# --- the load generator and the fuzzers ---------------------------------------------------------

bench-load: $(if $(loads),build/bench/load) build/bench/groups build/bench/turns

build/bench/load: $(loads:%.c=build/obj/%.o)
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)gcc $(LDFLAGS) $^ $(LDLIBS) -o $@

build/bench/groups build/bench/turns: build/bench/%: build/obj/bench/%/relay.o
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)gcc $(LDFLAGS) $^ $(LDLIBS) -o $@

build/bench/limits-sim: build/obj/bench/sim/limits.o build/libpenstock.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)gcc $(LDFLAGS) $^ $(LDLIBS) -o $@

build/fuzz/fuzz_%: build/fuzz/obj/tests/fuzz/fuzz_%.o build/fuzz/libpenstock.a
	$(call say,LINK)
	$(Q)clang $(LDFLAGS) -fsanitize=fuzzer,address,undefined $^ $(LDLIBS) -o $@

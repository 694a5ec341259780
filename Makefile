# SPDX-License-Identifier: GPL-2.0
# VARIANT, CONFIG, SERIES, KSRC, FETCH, FORCE and the like reach the scripts through
# the environment: make exports what stands on its command line. SERIES=6.12 takes
# the kernel and the series of patches/6.12, in all that follows.

help:		## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

bench:		## what it costs, base against series: report.html, summary.md (ROW= BOOTS=2)
	@bench/run

demo:		## base and series side by side: what one call frees (REPEAT=5 CPUS=2 MEMORY=)
	@bench/run --demo

pressure:	## who dies, and who waits, when memory is short, base and series (REPEAT=5 MEMORY=)
	@bench/run --pressure

clients:	## earlyoom, oomd, systemd-oomd from Debian and with our patches, in the guest
	@clients/run

check:		## the tests, of 7.3 on x86_64 (SERIES= ARCH= and more, see scripts/check)
	@scripts/check

check-all:	## make check for all kernels, architectures, configurations: hours
	@scripts/check-all

configs:	## our selftests without SWAP, SMP, ..., with NUMA, PREEMPT, PREEMPT_RT
	@ARCH= CONFIGS="$${CONFIGS:-noswap nosmp nothp nomemcg numa preempt rt}" scripts/check

fire:		## a storm of kills on kernels that find mistakes (STORMS= SEED= HOURS=)
	@scripts/fire

mutants:	## breaks the kernel code in many ways: each is caught by a test
	@scripts/mutants

unit:		## the unit tests, without a guest: a minute or two
	@scripts/unit

image:		## a kernel (VARIANT=base|series CONFIG=fast|debug ARCH=, see guest/arch)
	@scripts/image

tree:		## build/linux, or build/linux-SERIES: commits (KSRC= FETCH=1 FORCE=1)
	@scripts/tree

refresh:	## patches and our own files from the commits in build/linux
	@scripts/refresh

series:		## build/mail: the series as mails, without the command mrelease (VERSION=)
	@scripts/series-mail

apply:		## puts the series on a kernel tree of yours, KDIR=/path/to/linux
	@scripts/apply apply

revert:		## takes the series off KDIR again
	@scripts/apply revert

lint:		## shellcheck, checkpatch, words and the like
	@scripts/lint

clean:		## remove what was built and measured, but no tree of commits
	@find build -mindepth 1 -maxdepth 1 ! -name linux ! -name 'linux-[0-9]*' -exec rm -rf {} +

distclean:	## remove build/ with what is not refreshed, and the cache
	@rm -rf build "$${XDG_CACHE_HOME:-$$HOME/.cache}/mrelease"

.PHONY: help demo pressure clients check check-all configs bench fire mutants unit image tree refresh series \
	apply revert lint clean distclean

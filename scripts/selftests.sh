# SPDX-License-Identifier: GPL-2.0
# Sourced by what builds our selftests and runs the storm.
# shellcheck shell=bash

# build_own_selftests OUTPUT [VARIABLE=VALUE]...: the programs of the series and of the
# command, with the headers of the series.
build_own_selftests() {
	local tree out=$1 name
	shift
	tree=$(SERIES=$reference "$top/scripts/tree" | tail -n 1)
	mkdir -p "$out"/{process_mrelease,mrelease}
	make -C "$tree" O="$build/obj/headers-$ARCH" INSTALL_HDR_PATH="$out/usr" headers_install
	for name in process_mrelease mrelease; do
		make -j"$(nproc)" -C "$tree/tools/testing/selftests/$name" OUTPUT="$out/$name" \
			KHDR_INCLUDES="-isystem $out/usr/include" "$@"
	done
}

# run_selftest SELFTESTS KERNEL CPUS LIMIT NAME [VARIABLE=VALUE]...: run one program of
# that directory in a guest of its own, with these in its environment. guest_options has
# more options of guest/run.
guest_options=()
run_selftest() {
	local selftests=$1 kernel=$2 cpus=$3 limit=$4 name=$5
	shift 5
	"$top/guest/run" --image "$kernel" --cpus "$cpus" --memory 2048 --swap 128 \
		-t "$limit" "${guest_options[@]}" --file "$selftests:/root/selftests" \
		--file "$top/guest/selftests:/root/run" \
		-- env "$@" /root/run /root/selftests "process_mrelease/$name"
}

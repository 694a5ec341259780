# SPDX-License-Identifier: GPL-2.0
# Compares the KTAP of the kernel's own selftests with and without the series, result
# by result: one line for each program. Files named base* are of the kernel without
# the series, and come first. What fails on both is not ours. Where a program has been
# run several times, any of its results on the base counts, and one "ok" with the
# series: some depend on timing.

FNR == 1 {
	file++
	bases += FILENAME ~ /base.\.ktap$/
	name = "the guest"
	order[++names] = name
}
/^@@ (status|guest) / {
	if (/guest/)
		name = "the guest"
	seen[file, name, 0] = $3 == 0 ? "ok" : $3 == 4 ? "skip" : "not ok, status " $3
	next
}
/^@@ / {
	name = substr($0, 4)
	order[++names] = name
	next
}
/^(not )?ok [0-9]/ {
	i = ++last[file, name]
	seen[file, name, i] = /^not/ ? "not ok" : /# SKIP/ ? "skip" : "ok"
	line[file, name, i] = $0
}
/^1\.\.0 # SKIP / { why[name] = ": " substr($0, 13) }
END {
	first = bases + 1
	for (n = 1; n <= names; n++) {
		name = order[n]
		if (told[name]++)
			continue
		bad = ""
		split("", sum)
		max = 0
		for (f = 1; f <= file; f++) {
			if (last[f, name] > max)
				max = last[f, name]
		}
		for (i = 0; i <= max; i++) {
			split("", base)
			for (f = 1; f <= bases; f++)
				base[seen[f, name, i]]
			for (; f <= file; f++) {
				here = seen[f, name, i]
				if (here in base || here == "ok")
					break
			}
			sum[substr(here, 1, 4)] += i > 0 || !max
			if (f > file)
				bad = bad "\n# without the series: " seen[1, name, i] " " line[1, name, i] \
					"\n# with it: " seen[first, name, i] " " line[first, name, i]
		}
		for (f = 1; name == "the guest" && f <= file; f++) {
			if (seen[f, name, 0] != "ok")
				bad = bad "\n# it ended with " seen[f, name, 0]
		}
		if (bad)
			print "not ok " name " is not as on the base" bad
		else if (sum["ok"] + sum["not "] == 0)
			print "ok " name " # SKIP as on the base" why[name]
		else
			printf "ok %s: %d passed, %d failed, %d skipped, as on the base\n", \
				name, sum["ok"], sum["not "], sum["skip"]
	}
}

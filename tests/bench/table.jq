# The tables for people.
def pad($n): tostring | . + " " * ([$n - length, 0] | max);
def lpad($n): tostring | " " * ([$n - length, 0] | max) + .;
def num: if . == null then "-" elif . >= 100 then round elif . >= 10 then . * 10 | round / 10 else . * 100 | round / 100 end;
def us: if . == null then "-" else round end;
def order: ["idle-16m", "idle-1g", "write-1g", "threads-200", "first-round", "memory-1g", "memory-4g",
  "lazy-write", "lazy-shared", "lazy-faults", "lazy-bulk", "lazy-order", "net-echo", "net-redis", "net-10k"];
def phases: ["freeze", "last_pages", "capture", "rebuild", "launch", "commit"];

.machine as $m
| "\($m.cpu), \($m.cores) cores\(if $m.virtual then " (virtual machine)" else "" end), \($m.memory_mib / 1024 * 10 | round / 10) GiB, Linux \($m.kernel), \($m.date), \($m.commit)",
  "medians of \(.runs) runs; both hosts on this machine\(if .migrate_args != "" then "; " + .migrate_args else "" end)",
  "",
  ("" | pad(41)) + ("required" | lpad(9)) + ("goal" | lpad(7)) + ("measured" | lpad(10)) + ("min" | lpad(8)) + ("max" | lpad(8)) + "  verdict",
  (.table[] | select(.measured != null) | ("\(.what), \(.unit)" | pad(41)) + (.required | num | lpad(9)) + (.goal | num | lpad(7)) + (.measured | num | lpad(10))
    + (.min | num | lpad(8)) + (.max | num | lpad(8)) + "  \(.verdict)"),
  "",
  "where the downtime goes, medians in us (agent: as the agent counts; beside: what the application saw besides;",
  "noise: the largest gap in half a second before the migration)",
  ("" | pad(12)) + ([phases[], "agent", "min", "beside", "gap", "min", "noise", "stop", "rounds", "pages"] | map(lpad(11)) | join("")),
  (.cases as $c | order[] | select($c[.]) as $name | $c[$name].summary | ($name | pad(12)) +
    ([.phases_us[phases[]].median, .downtime_us.median, .downtime_us.min, .beside_us.median, .gap_us.median, .gap_us.min,
      .noise_us.median, .longest_stop_us.median, .rounds.median, .last_round_pages.median] | map(us | lpad(11)) | join(""))),
  (if .failed > 0 then "", "\(.failed) MIGRATIONS FAILED" else empty end)

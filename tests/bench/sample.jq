# One sample from what a migration printed and the workload measured.
def event($name): [$events[] | select(.event == $name)] | last;
event("done") as $done
| event("stops") as $stops
| [$events[] | select(.event == "round")] as $rounds
| {
    case: $case, run: $run, ok: $ok, load: ($load | tonumber),
    # what the application saw: the gap in which the host changed; the largest during the migration,
    # which may be another one; the largest in half a second before it
    gap_us: $gaps[0].move.us, largest_gap_us: $gaps[0].max_us, noise_us: $noise[0],
    outcome: $done.outcome, error: $done.error,
    downtime_us: $done.downtime_us, total_us: $done.total_us, phases_us: $done.phases_us,
    memory_bytes: $done.memory_bytes, stops: $stops.count, longest_stop_us: $stops.longest_us,
    rounds: $rounds
  }
| if $done.postcopy then
    .postcopy = $done.postcopy
    | .bulk_bytes_s = ($done.postcopy | .pages_lazy * 4096 / .duration_us * 1e6)
  else . end
| if $touched != [] then
    .touched = $touched[0]
    | if .touched.passes > 0 then .pass_ratio = (.touched | .pass_us / .pass_before_us) else . end
  else . end
| if $iperf != [] then
    .iperf_bytes_s = $iperf
    | if .bulk_bytes_s then .bulk_ratio = .bulk_bytes_s / ($iperf | max) else . end
    | .warm_bytes_s = ($warm[0] | . * 1e9) # touching what the destination then used
    | .first_round_bytes_s = ($rounds[0] | .bytes_wire / .duration_us * 1e6)
    | .first_round_ratio = .first_round_bytes_s / ($iperf | max)
  else . end
| if $peak != [] then
    .processes = $peak[0]
    # all processes of a host's agent together: some of their pages are shared and count twice
    | .peak_kb = ($peak[0] | group_by([.host, .program])
      | map({key: "\(.[0].host) \(.[0].program)", value: (map(.peak_kb) | add)}) | from_entries)
  else . end
| if $net != "" then
    .net = ([$net | split("\n")[] | select(. != "") | split(" ") | {key: .[0], value: (.[1] | fromjson)}] | from_entries)
    | if .net.rate_before and .net.rate_beside then .net.lost = 1 - .net.rate_beside / .net.rate_before else . end
  else . end

# A sample as a line of progress.
def ms: if . == null then "-" else . / 10 | round / 100 end;
"\(.case) \(.run): " +
if .ok | not then "FAILED: \(.error.message // "see above")"
elif .net then
  "stall \(.net.stall_us | ms) ms (\(.net.noise_us | ms) without), downtime \(.downtime_us | ms) ms, \(.rounds | length) rounds in \(.total_us | ms) ms"
  + (if .net.lost then ", \(.net.lost * 100 | round)% of \(.net.rate_before | round)/s lost beside the rounds, \(.net.errors) errors, \(.net.reconnects) reconnects" else "" end)
elif .touched then "waits \(.touched.waits), p50 \(.touched.p50_us) us, p99 \(.touched.p99_us) us, pass \(.pass_ratio // 0 | . * 100 | round / 100) x"
else "gap \(.gap_us | ms) ms, of it \(.downtime_us | ms) by the agent, noise \(.noise_us | ms), \(.rounds | length) rounds in \(.total_us | ms) ms"
  + (if .first_round_ratio then ", first round \(.first_round_ratio * 100 | round)% of iperf3" else "" end)
  + (if .bulk_ratio then ", push \(.bulk_ratio * 100 | round)% of iperf3" else "" end)
  + (if .peak_kb then ", peaks KiB: \(.peak_kb | tojson)" else "" end)
end

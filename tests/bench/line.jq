# A sample as a line of progress.
def ms: . / 10 | round / 100;
"\(.case) \(.run): " +
if .ok | not then "FAILED: \(.error.message // "see above")"
elif .touched then "waits \(.touched.waits), p50 \(.touched.p50_us) us, p99 \(.touched.p99_us) us, pass \(.pass_ratio // 0 | . * 100 | round / 100) x"
else "gap \(.gap_us | ms) ms, of it \(.downtime_us | ms) by the agent, noise \(.noise_us | ms), \(.rounds | length) rounds in \(.total_us | ms) ms"
  + (if .first_round_ratio then ", first round \(.first_round_ratio * 100 | round)% of iperf3" else "" end)
  + (if .bulk_ratio then ", push \(.bulk_ratio * 100 | round)% of iperf3" else "" end)
  + (if .peak_kb then ", peaks KiB: \(.peak_kb | tojson)" else "" end)
end

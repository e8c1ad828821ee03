# bench.json from all samples.
def stats:
  map(select(. != null)) | sort
  | if . == [] then null
    else {median: (if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2] + .[length / 2 - 1]) / 2 end),
          min: .[0], max: .[-1]}
    end;
def of($path): map(getpath($path)) | stats;
def scale($by): if . == null then null else map_values(. / $by) end;
def phases: ["freeze", "last_pages", "capture", "rebuild", "launch", "commit"];

def summarize: {
    samples: length,
    gap_us: of(["gap_us"]), largest_gap_us: of(["largest_gap_us"]), noise_us: of(["noise_us"]),
    downtime_us: of(["downtime_us"]), total_us: of(["total_us"]),
    phases_us: (. as $all | reduce phases[] as $p ({}; .[$p] = ($all | of(["phases_us", $p])))),
    # after the tasks were let go until the tick ran, and before they were asked to stop
    beside_us: (map(select(.gap_us) | .gap_us - .downtime_us) | stats),
    rounds: (map(.rounds | length) | stats),
    last_round_pages: (map(.rounds[-1].pages_sent) | stats),
    stops: of(["stops"]), longest_stop_us: of(["longest_stop_us"]),
    first_round_bytes_s: of(["first_round_bytes_s"]), iperf_bytes_s: (map(.iperf_bytes_s // [] | max) | stats),
    first_round_ratio: of(["first_round_ratio"]),
    wait_p50_us: of(["touched", "p50_us"]), wait_p99_us: of(["touched", "p99_us"]),
    bulk_bytes_s: of(["bulk_bytes_s"]), bulk_ratio: of(["bulk_ratio"]), pass_ratio: of(["pass_ratio"]),
    stall_us: of(["net", "stall_us"]), beyond_us: (map(select(.net.stall_us) | .net.stall_us - .downtime_us) | stats),
    errors: of(["net", "errors"]), reconnects: of(["net", "reconnects"]), lost: of(["net", "lost"]),
    pages_lazy: of(["postcopy", "pages_lazy"]), asked_again: of(["postcopy", "asked_again"]),
    peak_kb: (map(.peak_kb // {} | to_entries[]) | group_by(.key)
      | map({key: .[0].key, value: (map(.value) | stats)}) | from_entries)
  };

# A row: what, unit, the limits, and the figure that is judged, with its extremes.
def row($what; $unit; $required; $goal; $v):
  {what: $what, unit: $unit, required: $required, goal: $goal, measured: $v.median, min: $v.min, max: $v.max};
def judge($more_is_better):
  def meets($limit): if $more_is_better then .measured >= $limit else .measured <= $limit end;
  .verdict = if .measured == null then "not measured"
             elif meets(.goal) then "goal reached"
             elif meets(.required) then "ok"
             else "falls short" end;
# Memory is judged by the most that was ever seen.
def peak_row($case; $program):
  row("\($program), peak memory, \($case | ltrimstr("memory-") | ascii_upcase)iB moved"; "MiB"; 64; 32;
      [.[$case].peak_kb // {} | to_entries[] | select(.key | endswith(" " + $program)) | .value]
      | if . == [] then null
        else {median: (map(.max) | max), min: (map(.min) | min), max: (map(.max) | max)} | scale(1024) end)
  | judge(false);

. as $all
| group_by(.case) | map({key: .[0].case, value: map(select(.ok and .run > 0))}) | from_entries
| . as $samples
| map_values(summarize) as $c
| {
    machine: $machine, runs: $runs, migrate_args: $args,
    failed: ([$all[] | select(.ok | not)] | length),
    table: [
      ($c | row("downtime, 16 MiB idle"; "ms"; 5; 1; .["idle-16m"].gap_us | scale(1000)) | judge(false)),
      ($c | row("downtime, 1 GiB idle"; "ms"; null; null; .["idle-1g"].gap_us | scale(1000)) | .verdict = "see next"),
      ($c | (.["idle-16m"].gap_us.median) as $small
       | row("  over that of 16 MiB"; "x"; 1.5; 1.0;
             if $small == null then null else .["idle-1g"].gap_us | scale($small) end) | judge(false)),
      ($c | row("downtime, 1 GiB written at 100 MB/s"; "ms"; 15; 3; .["write-1g"].gap_us | scale(1000)) | judge(false)),
      ($c | row("downtime, 16 MiB, 200 threads"; "ms"; 25; 7; .["threads-200"].gap_us | scale(1000)) | judge(false)),
      ($c | row("first round, bytes/s over iperf3"; "x"; 0.5; 0.9; .["first-round"].first_round_ratio) | judge(true)),
      ($c | ["memory-1g", "memory-4g"][] as $m | select(.[$m]) | peak_row($m; "cr-agent"), peak_row($m; "page-server")),
      ($c | row("downtime, \($lazy_mib) MiB written as fast as can be, hybrid"; "ms"; 20; 5; .["lazy-write"].gap_us | scale(1000)) | judge(false)),
      ($c | row("downtime, 1024 MiB of shared memory written as fast as can be, hybrid"; "ms"; 50; 10; .["lazy-shared"].gap_us | scale(1000)) | judge(false)),
      ($c | row("wait for a page, p50, beside the push"; "us"; 120; 20; .["lazy-faults"].wait_p50_us) | judge(false)),
      ($c | row("  p99"; "us"; 1000; 150; .["lazy-faults"].wait_p99_us) | judge(false)),
      ($c | row("push, bytes/s over iperf3"; "x"; 0.5; 0.9; .["lazy-bulk"].bulk_ratio) | judge(true)),
      ($c | row("memory looked at in order as it arrives"; "x"; 2; 1.2; .["lazy-order"].pass_ratio) | judge(false)),
      ($c | row("stall of a TCP echo, less the downtime"; "ms"; 5; 1; .["net-echo"].beyond_us | scale(1000)) | judge(false)),
      ($c | row("redis-benchmark, 1 GiB: errors"; ""; 0; 0; .["net-redis"].errors) | judge(false)),
      ($c | row("  reconnects"; ""; 0; 0; .["net-redis"].reconnects) | judge(false)),
      ($c | row("  longest stall"; "ms"; 30; 5; .["net-redis"].stall_us | scale(1000)) | judge(false)),
      ($c | row("  throughput lost beside the rounds"; "%"; 15; 5; .["net-redis"].lost | scale(0.01)) | judge(false)),
      ($c | row("downtime, 10,000 connections"; "ms"; 500; 100; .["net-10k"].downtime_us | scale(1000)) | judge(false)),
      ($c | row("pages asked for that had been delivered"; ""; 0; 0;
                [.[].asked_again | select(.)] | if . == [] then null
                else {median: (map(.max) | max), min: (map(.min) | min), max: (map(.max) | max)} end) | judge(false)),
      ($c | row("stops before the switch-over"; "per process"; 1; 1;
                [.[].stops | select(.)] | if . == [] then null
                else {median: (map(.max) | max), min: (map(.min) | min), max: (map(.max) | max)} end) | judge(false)),
      ($c | row("longest of them, worst case"; "ms"; 5; 1;
                [.[].longest_stop_us | select(.)] | if . == [] then null else max_by(.median) | scale(1000) end) | judge(false))
    ],
    cases: ($samples | with_entries(.value = {summary: $c[.key], samples: .value}))
  }

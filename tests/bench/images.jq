# The rows of tests/bench/images.
def stats: sort | if . == [] then {median: null, min: null, max: null}
  else {median: (if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2] + .[length / 2 - 1]) / 2 end),
        min: .[0], max: .[-1]} end;
def short: if . == null then null else . * 1000 | round / 1000 end;
def row($what; $unit; $required; $goal; $v; $meets):
  {what: $what, unit: $unit, required: $required, goal: $goal, measured: ($v.median | short), min: ($v.min | short),
   max: ($v.max | short)}
  | .verdict = if .measured == null then "not measured" elif [.measured, .goal] | $meets == (.[0] <= .[1]) or .[0] == .[1]
               then "goal reached" elif [.measured, .required] | $meets == (.[0] <= .[1]) then "ok" else "falls short" end;
{
  table: [
    row("ten rounds of \($mib) MiB written at 100 MB/s: disk used over that of a single dump"; "x"; 1.02; 1.0;
        [$rounds[].ratio] | stats; true),
    row("restore of \($mib) MiB from a directory in memory, bytes/s over memcpy into fresh memory"; "x"; 0.6; 0.9;
        [$restores[].ratio] | stats; false)
  ],
  rounds: $rounds, restores: $restores
}

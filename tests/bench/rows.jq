# What the tables of tests/bench/images and tests/bench/dump are made of.
def stats: sort | if . == [] then {median: null, min: null, max: null}
  else {median: (if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2] + .[length / 2 - 1]) / 2 end),
        min: .[0], max: .[-1]} end;
def short: if . == null then null else . * 1000 | round / 1000 end;
# The median of $values, beside what is required of it; $least: less is better.
def row($what; $unit; $required; $goal; $values; $least):
  ($values | stats) as $v
  | {what: $what, unit: $unit, required: $required, goal: $goal, measured: ($v.median | short), min: ($v.min | short),
     max: ($v.max | short)}
  | .verdict = if .measured == null then "not measured" elif [.measured, .goal] | $least == (.[0] <= .[1]) or .[0] == .[1]
               then "goal reached" elif [.measured, .required] | $least == (.[0] <= .[1]) then "ok" else "falls short" end;
def lines: .table[] | "\(.what), \(.unit): required \(.required), goal \(.goal), measured \(.measured) (\(.min) - \(.max))  \(.verdict)";

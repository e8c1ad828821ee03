# The rows of tests/bench/dump.
include "rows";
{
  table: [
    row("dump of 1 GiB to a page-server (tmpfs, huge=within_size), bytes/s over iperf3"; "x"; 0.5; 0.9; [$large[].ratio]; false),
    row("  the same into a plain tmpfs"; "x"; 0.5; 0.9; [$plain[].ratio]; false),
    row("\($many[0].at_once // 20) dumps into one page-server at once: failed"; "dumps"; 0; 0; [$many[].failed]; true),
    row("  the page-server's peak memory over its --max-memory"; "x"; 1; 1; [$many[].peak_ratio]; true)
  ],
  dumps: ($large + $plain), many: $many
}

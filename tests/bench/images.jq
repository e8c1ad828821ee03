# The rows of tests/bench/images.
include "rows";
{
  table: [
    row("ten rounds of \($mib) MiB written at 100 MB/s: disk used over that of a single dump"; "x"; 1.02; 1.0;
        [$rounds[].ratio]; true),
    row("restore of \($mib) MiB from a directory in memory, bytes/s over memcpy into fresh memory"; "x"; 0.6; 0.9;
        [$restores[].ratio]; false)
  ],
  rounds: $rounds, restores: $restores
}

/* libFuzzer target: the first byte picks the parser, the rest is its text. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "kernel/procfs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct proc_maps maps;
	struct proc_stat stat;
	struct proc_status status;
	struct proc_rlimit limits[16];
	struct proc_timers timers;
	struct cr_err err;

	if (!size)
		return 0;
	_cleanup_free_ char *text = strndup((const char *)data + 1, size - 1);
	if (!text)
		return 0;
	switch (data[0] % 6) {
	case 0:
		if (!proc_maps_parse(text, &maps, &err))
			proc_maps_done(&maps);
		break;
	case 1:
		if (!proc_smaps_parse(text, &maps, &err))
			proc_maps_done(&maps);
		break;
	case 2:
		if (proc_stat_parse(text, &stat, &err))
			err.code = 0;
		break;
	case 3:
		if (!proc_status_parse(text, &status, &err))
			proc_status_done(&status);
		break;
	case 4:
		if (proc_limits_parse(text, limits, &err))
			err.code = 0;
		break;
	case 5:
		if (!proc_timers_parse(text, &timers, &err))
			vec_done(&timers.list);
		break;
	}
	return 0;
}

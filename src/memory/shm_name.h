/* Names of POSIX shared memory. */
#pragma once
#include "kernel/procfs.h"

/* sem_open(3) makes a semaphore under a name that it removes at once, having linked the file to its
 * proper name: whoever made it has mapped what maps calls deleted. Such mappings get the name that
 * the file has. */
void shm_names_find(struct proc_maps *maps);

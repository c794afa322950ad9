/* Killing a tree of processes. */
#pragma once

#include <sys/types.h>

extern int proc; /* the directory /proc, as it was when the supervisor started */

/* Kill the process `root`, unless that is the caller, and all that descends from it. The processes are stopped first,
 * so that none starts another one meanwhile; a process that escapes is found by the next call. Returns 0 when none was
 * left; EAGAIN when some were killed; EPERM when the caller may kill none of those left; EIO without `root`. */
int kill_once(pid_t root);

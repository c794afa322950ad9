/* What the worker says of a command: its spec. */
#pragma once

#include "start.h"

/* Parse a spec: the numbers of arguments and of variables, then user, directory, arguments and variables as strings,
 * each with a 0 behind it. The start points into `data`. Leaves room for one more variable. */
bool parse_spec(struct start *start, char *data, size_t size, char **user);

/* Read a spec, and fill in what depends on the box: the user, and HOME where the worker has set none. */
bool read_spec(struct start *start, int file);

/* The file service of the supervisor's program. Serves the requests of the input, and returns an exit code. */
#pragma once

int serve_files(void);

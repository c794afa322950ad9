/* What the worker says of a command, in a file that it passes on: arguments, variables, user and directory. */
#define _GNU_SOURCE
#include "spec.h"
#include "packet.h"
#include "users.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_SPEC = 4 << 20 }; /* bytes */

static char *next_string(char **at, const char *end)
{
    char *string = *at;
    if (string == end)
        return NULL;
    *at += strlen(string) + 1;
    return string;
}

bool parse_spec(struct start *start, char *data, size_t size, char **user)
{
    uint32_t argc, envc;
    char *at = data + sizeof argc + sizeof envc, *end = data + size;
    if (size < sizeof argc + sizeof envc + 3 || end[-1])
        return fail(AT_SPEC, EINVAL);
    memcpy(&argc, data, sizeof argc);
    memcpy(&envc, data + sizeof argc, sizeof envc);
    if (!argc || argc > size || envc > size)
        return fail(AT_SPEC, EINVAL);
    start->argv = allocate((argc + 1 + envc + 2) * sizeof(char *));
    if (!start->argv)
        return fail(AT_RESOURCES, ENOMEM);
    start->envp = start->argv + argc + 1;
    *user = next_string(&at, end);
    start->directory = next_string(&at, end);
    for (uint32_t i = 0; i < argc; i++)
        if (!(start->argv[i] = next_string(&at, end)))
            return fail(AT_SPEC, EINVAL);
    for (uint32_t i = 0; i < envc; i++)
        if (!(start->envp[i] = next_string(&at, end)) || !strchr(start->envp[i], '='))
            return fail(AT_SPEC, EINVAL);
    if (at != end)
        return fail(AT_SPEC, EINVAL);
    if (!*start->directory)
        start->directory = "/";
    return true;
}

bool read_spec(struct start *start, int file)
{
    static char home_variable[PATH_MAX];
    struct stat state;
    char *user;
    if (fstat(file, &state) || state.st_size < 0 || state.st_size > MAX_SPEC)
        return fail(AT_SPEC, EINVAL);
    size_t size = (size_t)state.st_size;
    char *data = allocate(size + 1);
    if (!data)
        return fail(AT_RESOURCES, ENOMEM);
    if (pread(file, data, size, 0) != state.st_size)
        return fail(AT_SPEC, EINVAL);
    if (!parse_spec(start, data, size, &user))
        return false;
    char **home = variable(start->envp, "HOME");
    bool has_home = home && (*home)[strlen("HOME=")];
    if (has_home && !*user)
        return true;
    const char *directory = resolve_user(start, user, read_accounts("/etc/passwd"), read_accounts("/etc/group"));
    if (!directory)
        return false;
    if (!has_home) {
        snprintf(home_variable, sizeof home_variable, "HOME=%s", directory);
        if (!home)
            for (home = start->envp; *home; home++)
                ;
        *home = home_variable;
    }
    return true;
}

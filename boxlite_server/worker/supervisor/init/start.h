/* The start of a command: what it needs, and why it fails. */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MAX_GROUPS = 1024 }; /* of one user */

struct start {
    char **argv, **envp;
    const char *directory; /* NULL: where the supervisor is */
    bool is_main;          /* the box's main command: a process group of its own in the supervisor's session */
    pid_t *pid;            /* where its pid is written before it is executed */
    bool has_terminal;
    int descriptors[3]; /* to be its input, output and errors; above 2 */
    bool is_other_user;
    uid_t uid;
    gid_t gid, groups[MAX_GROUPS];
    size_t group_count;
};

/* Where and why a start failed; stage 0: it did not. A command that is about to be executed shares its keeper's memory,
 * so that the keeper finds here what the command has written. */
extern volatile struct failure {
    uint32_t stage, error;
} failure;

extern sigset_t original_mask; /* signals that were blocked when the supervisor started */

/* Set `failure`: `stage` is of a FAILED packet, `error` an errno. Returns false. */
bool fail(int stage, int error);

/* Get memory that is zero, for as long as the process lives. Returns NULL where there is none. */
void *allocate(size_t size);

/* How many characters stand in front of the first `end`, or in the whole text. */
size_t span(const char *text, char end);

/* Finds a variable of an environment. Returns its place, or NULL. */
char **variable(char **envp, const char *name);

/* Execute a program, found by the PATH of its own environment. Returns on failure alone, with errno set. */
void execute(char **argv, char **envp);

/* Start a program. Returns its pid once it is executed, or -1 and `failure`. */
pid_t start_program(struct start *start);

/* Open a terminal of the given size. Returns its master; its other end is the command's input, output and errors. */
int open_terminal(struct start *start, uint32_t size);

/* Finding and killing a tree of processes, as /proc shows it. Any process of the box may start others meanwhile. */
#define _GNU_SOURCE
#include "tree.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    MAX_PROCESSES = 1 << 16, /* of the box, in one look at /proc */
    STOP_LOOKS = 100,        /* for processes of a tree that still run */
};

int proc = -1;

static struct process {
    pid_t pid, parent;
    char state;
    bool is_in_tree;
} processes[MAX_PROCESSES];
static size_t process_count;

static void look_at(const char *pid)
{
    char path[32], text[256], *at;
    snprintf(path, sizeof path, "%.20s/stat", pid);
    int file = openat(proc, path, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
    close(file);
    text[size > 0 ? size : 0] = 0;
    if (process_count < MAX_PROCESSES && (at = strrchr(text, ')'))) /* the name in front may contain anything */
        processes[process_count++] = (struct process){.pid = atoi(pid), .parent = atoi(at + 4), .state = at[2]};
}

/* Look at all processes of the box, in the order of their pids. */
static void look(void)
{
    static _Alignas(struct dirent) char entries[4096];
    int directory = openat(proc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    process_count = 0;
    for (long size; (size = syscall(SYS_getdents64, directory, entries, sizeof entries)) > 0;)
        for (long at = 0; at < size; at += ((struct dirent *)(entries + at))->d_reclen)
            if (isdigit((unsigned char)*((struct dirent *)(entries + at))->d_name))
                look_at(((struct dirent *)(entries + at))->d_name);
    close(directory);
}

static int by_pid(const void *a, const void *b)
{
    pid_t left = ((const struct process *)a)->pid, right = ((const struct process *)b)->pid;
    return (left > right) - (left < right);
}

/* Look for the process `root` and all that descends from it. Returns whether `root` was found. */
static bool look_at_tree(pid_t root)
{
    bool has_grown = true, is_found = false;
    look();
    while (has_grown) {
        has_grown = false;
        for (struct process *p = processes; p < processes + process_count; p++) {
            struct process key = {.pid = p->parent}, *parent;
            if (p->is_in_tree)
                continue;
            parent = bsearch(&key, processes, process_count, sizeof key, by_pid);
            has_grown |= p->is_in_tree = p->pid == root || (parent && parent->is_in_tree);
            is_found |= p->pid == root;
        }
    }
    return is_found;
}

int kill_once(pid_t root)
{
    int found = 0, killed = 0;
    for (int looks = 0, running = 1; running && looks < STOP_LOOKS; looks++) {
        running = 0;
        if (!look_at_tree(root))
            return EIO;
        for (struct process *p = processes; p < processes + process_count; p++)
            if (p->is_in_tree && p->pid != getpid() && !strchr("Tt", p->state))
                /* A zombie is no reason to look again, but its other threads may run on. */
                running += !kill(p->pid, SIGSTOP) && !strchr("ZX", p->state);
    }
    for (struct process *p = processes; p < processes + process_count; p++)
        if (p->is_in_tree && p->pid != getpid()) {
            found++;
            killed += !kill(p->pid, SIGKILL);
        }
    return !found ? 0 : killed ? EAGAIN : EPERM;
}

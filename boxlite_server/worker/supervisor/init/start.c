/* How a command is started: its streams or terminal, its directory, its user, and the search for its program. */
#define _GNU_SOURCE
#include "start.h"
#include "packet.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

volatile struct failure failure;
sigset_t original_mask;

bool fail(int stage, int error)
{
    failure.stage = (uint32_t)stage;
    failure.error = (uint32_t)error;
    return false;
}

void *allocate(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

size_t span(const char *text, char end)
{
    size_t length = 0;
    while (text[length] && text[length] != end)
        length++;
    return length;
}

char **variable(char **envp, const char *name)
{
    size_t length = strlen(name);
    for (; *envp; envp++)
        if (!strncmp(*envp, name, length) && (*envp)[length] == '=')
            return envp;
    return NULL;
}

void execute(char **argv, char **envp)
{
    char **found = variable(envp, "PATH"), candidate[PATH_MAX];
    const char *path = found ? *found + strlen("PATH=") : DEFAULT_PATH;
    int error = ENOENT;
    if (strchr(argv[0], '/')) {
        execve(argv[0], argv, envp);
        return;
    }
    for (size_t length; *path && *argv[0]; path += length + (path[length] == ':')) {
        length = span(path, ':');
        int size = snprintf(candidate, sizeof candidate, "%.*s/%s", (int)length, path, argv[0]);
        if (!length || size >= (int)sizeof candidate)
            continue;
        execve(candidate, argv, envp);
        if (errno == EACCES)
            error = EACCES; /* unless a later directory has the program */
        else if (errno != ENOENT && errno != ENOTDIR) {
            error = errno;
            break;
        }
    }
    errno = error;
}

/* Become the user. By system calls of this thread alone: the C library's would change all threads, and this process
 * shares its memory with the keeper. */
static bool become_user(const struct start *start)
{
    return !syscall(SYS_setgroups, start->group_count, start->groups) &&
           !syscall(SYS_setresgid, start->gid, start->gid, start->gid) &&
           !syscall(SYS_setresuid, start->uid, start->uid, start->uid);
}

static bool prepare(const struct start *start)
{
    if (start->is_main) {
        setpgid(0, 0);
        tcsetpgrp(STDIN_FILENO, getpid()); /* where the input is a terminal */
    } else {
        setsid();
        for (int i = 0; i < 3; i++)
            if (dup2(start->descriptors[i], i) < 0)
                return fail(AT_RESOURCES, errno);
    }
    if (start->has_terminal && ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0)
        return fail(AT_TERMINAL, errno);
    /* Either the supervisor's user or the command's may enter the directory: the engine tries both too. */
    bool is_there = !start->directory || !chdir(start->directory);
    if (!is_there && errno != EACCES)
        return fail(AT_DIRECTORY, errno);
    if (start->is_other_user && !become_user(start))
        return fail(AT_IDENTITY, errno);
    if (!is_there && chdir(start->directory) < 0)
        return fail(AT_DIRECTORY, errno);
    return true;
}

static int run(void *start_)
{
    const struct start *start = start_;
    *start->pid = getpid();
    if (prepare(start)) {
        sigprocmask(SIG_SETMASK, &original_mask, NULL);
        execute(start->argv, start->envp);
        fail(AT_EXEC, errno);
    }
    _exit(127);
}

pid_t start_program(struct start *start)
{
    static _Alignas(16) char stack[64 * 1024];
    failure.stage = 0;
    pid_t pid = clone(run, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, start);
    if (pid < 0)
        fail(AT_RESOURCES, errno);
    if (pid > 0 && failure.stage)
        waitpid(pid, NULL, 0);
    return failure.stage ? -1 : pid;
}

int open_terminal(struct start *start, uint32_t size)
{
    struct winsize window = {.ws_col = (unsigned short)size, .ws_row = (unsigned short)(size >> 16)};
    int unlock = 0, slave, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) || ioctl(master, TIOCSWINSZ, &window) ||
        (slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
        fail(AT_TERMINAL, errno);
        return -1;
    }
    if (start->is_other_user && fchown(slave, start->uid, (gid_t)-1) < 0)
        errno = 0; /* without the right to give it away, it stays the supervisor's */
    start->has_terminal = true;
    for (int i = 0; i < 3; i++)
        start->descriptors[i] = slave;
    return master;
}

/*
 * The supervisor of a box: it starts the worker's commands inside the box, and tells the worker how they end.
 *
 * It runs as process 1 of the box (`init -- COMMAND…`: runs the main command, reaps orphans, forwards signals, exits
 * with the main command's code), or beside another process 1 (`init`). As process 1 of a box that was made before
 * anybody asked for it (`init --wait`), it waits for the worker to name the main command. It has the rights of the
 * box's processes and no more. It dials the worker's socket, which lies in the directory of this program, and dials
 * again when the connection ends; commands go on meanwhile. `init --files` is no supervisor, but a command for the
 * worker: see files.c.
 *
 * Each command runs under a keeper: a fork of the supervisor that adopts all that the command starts
 * (PR_SET_CHILD_SUBREAPER), so that the command can be killed as a tree, whatever it does with sessions and parents.
 * The keeper ends with the command; what the command leaves behind is then adopted by the supervisor.
 *
 *     worker  <— packets —>  supervisor  <— packets —>  keeper  —>  command
 *
 * Worker, supervisor and keepers speak in packets of 16 bytes. The supervisor passes them on in both directions, and
 * remembers of each command how it started and how it ended until the worker forgets the command.
 *
 * Nothing is allocated while it runs, except by keepers, for one command each. Everything is bounded. The supervisor
 * itself reads no file of the box (but /etc/passwd, before a main command that was waited for) and never waits for a
 * process of the box: keepers do.
 */
#define _GNU_SOURCE
#include "files.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

enum {
    PROTOCOL = 1,
    MAX_COMMANDS = 512,       /* that the worker has not forgotten, at once */
    MAX_DESCRIPTORS = 4,      /* with one packet */
    MAX_SPEC = 4 << 20,       /* bytes */
    MAX_ACCOUNTS = 1 << 20,   /* bytes of /etc/passwd and /etc/group that are read */
    MAX_GROUPS = 1024,        /* of one user */
    MAX_PROCESSES = 1 << 16,  /* of the box, in one look at /proc */
    MIN_PAUSE = 10, MAX_PAUSE = 500, /* milliseconds until the worker is dialled again */
    BATCH = 64,               /* signals or ended processes that are taken at once */
    STOP_LOOKS = 100,         /* for processes of a tree that still run */
    KILL_ROUNDS = 500,        /* of at most 10 ms, until nothing of a tree is left */
};

/* ---- packets ---- */

enum {
    SPAWN = 'S', SIGNAL = 'G', KILL = 'K', FORGET = 'F', MAIN = 'M',  /* from the worker */
    HELLO = 'H', STARTED = 'A', EXITED = 'X', FAILED = 'E', ANSWER = 'Q', /* to the worker */
};
enum { TERMINAL = 1 };            /* flag of SPAWN */
enum { AS_FIRST = 1 };            /* flag of MAIN */
enum { AWAITS_MAIN = 1 };         /* flag of HELLO */
enum { BY_SIGNAL = 1, LOST = 2 }; /* flags of EXITED */
enum { AT_USER = 1, AT_GROUP, AT_IDENTITY, AT_DIRECTORY, AT_EXEC, AT_RESOURCES, AT_SPEC, AT_TERMINAL }; /* of FAILED */

struct packet {
    uint8_t type, flags;
    uint16_t reserved;
    uint32_t id, a, b;
};
_Static_assert(sizeof(struct packet) == 16, "the packet has no padding");

struct received {
    struct packet packet;
    int descriptors[MAX_DESCRIPTORS];
    int count;   /* of the descriptors */
    bool is_cut; /* some descriptors found no room in this process */
};

union control {
    struct cmsghdr header; /* for the alignment */
    char space[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))];
};

/* Send a packet, with a descriptor unless that is -1. Returns 0 or an errno. */
static int send_packet(int to, const struct packet *packet, int descriptor, int flags)
{
    union control control = {0};
    struct iovec body = {(void *)packet, sizeof *packet};
    struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1};
    if (descriptor >= 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof descriptor);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof descriptor);
        memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    }
    return sendmsg(to, &message, MSG_NOSIGNAL | flags) < 0 ? errno : 0;
}

static void close_all(struct received *received)
{
    for (int i = 0; i < received->count; i++)
        close(received->descriptors[i]);
    received->count = 0;
}

/* Receive a packet without waiting. Returns 1, or 0 when there is none now, or -1 when none will come any more or the
 * peer does not speak in packets. */
static int receive_packet(int from, struct received *received)
{
    union control control;
    struct iovec body = {&received->packet, sizeof received->packet};
    struct msghdr message = {
        .msg_iov = &body, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    received->count = 0;
    ssize_t size = recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message); /* the kernel makes one of all descriptors */
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        size_t bytes = header->cmsg_len - CMSG_LEN(0);
        memcpy(received->descriptors, CMSG_DATA(header), bytes);
        received->count = (int)(bytes / sizeof(int));
    }
    received->is_cut = message.msg_flags & MSG_CTRUNC;
    if (size == sizeof received->packet && !(message.msg_flags & MSG_TRUNC) && !received->packet.reserved)
        return 1;
    close_all(received);
    return -1;
}

/* ---- the start of a command ---- */

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
static volatile struct {
    uint32_t stage, error;
} failure;

static sigset_t original_mask; /* signals that were blocked when the supervisor started */
static int signals = -1;       /* a signalfd for all signals of this process */

static bool fail(int stage, int error)
{
    failure.stage = (uint32_t)stage;
    failure.error = (uint32_t)error;
    return false;
}

/* How many characters stand in front of the first `end`, or in the whole text. */
static size_t span(const char *text, char end)
{
    size_t length = 0;
    while (text[length] && text[length] != end)
        length++;
    return length;
}

/* Finds a variable of an environment. Returns its place, or NULL. */
static char **variable(char **envp, const char *name)
{
    size_t length = strlen(name);
    for (; *envp; envp++)
        if (!strncmp(*envp, name, length) && (*envp)[length] == '=')
            return envp;
    return NULL;
}

/* Execute a program, found by the PATH of its own environment. Returns on failure alone, with errno set. */
static void execute(char **argv, char **envp)
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

/* Start a program. Returns its pid once it is executed, or -1 and `failure`. */
static pid_t start_program(struct start *start)
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

/* ---- users, as the engine's exec has them ---- */

static void *allocate(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

/* Read the beginning of a regular file of the box as a string, which is empty where the file cannot be read. */
static char *read_accounts(const char *path)
{
    static char nothing[1];
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat state;
    char *text = NULL;
    if (file >= 0 && !fstat(file, &state) && S_ISREG(state.st_mode) && (text = allocate(MAX_ACCOUNTS + 1))) {
        ssize_t size, length = 0;
        while (length < MAX_ACCOUNTS && (size = read(file, text + length, (size_t)(MAX_ACCOUNTS - length))) > 0)
            length += size;
    }
    if (file >= 0)
        close(file);
    nothing[0] = 0;
    return text ? text : nothing;
}

/* Split the next field off a text, which is NULL behind its last field. Returns NULL where there is none. In linear
 * time for all fields of a text, which the strsep of some libraries is not. */
static char *next_field(char **text, char separator)
{
    char *field = *text, *end = field ? field + span(field, separator) : NULL;
    *text = end && *end ? end + 1 : NULL;
    if (end)
        *end = 0;
    return field;
}

/* Split the next line that has at least `count` fields off a text. Returns false at the text's end. */
static bool next_line(char **text, char **fields, int count)
{
    for (char *line; (line = next_field(text, '\n'));) {
        int found = 0;
        while (found < count && (fields[found] = next_field(&line, ':')))
            found++;
        if (found == count)
            return true;
    }
    return false;
}

/* Whether the text is a number of a user or group, which `number` then is. */
static bool is_number(const char *text, uint32_t *number)
{
    uint64_t value = 0;
    const char *digit = text;
    for (; isdigit((unsigned char)*digit) && value <= INT_MAX; digit++)
        value = value * 10 + (uint64_t)(*digit - '0');
    *number = (uint32_t)value;
    return *text && !*digit && value <= INT_MAX;
}

struct user {
    uint32_t uid, gid;
    const char *name, *home; /* NULL: /etc/passwd does not say */
};

/* Find the first user of that name or, where the name is NULL, of the uid in `user`. */
static bool find_user(char *passwd, const char *name, struct user *user)
{
    char *fields[6];
    uint32_t uid, gid;
    while (next_line(&passwd, fields, 6))
        if (is_number(fields[2], &uid) && is_number(fields[3], &gid) &&
            (name ? !strcmp(fields[0], name) : uid == user->uid)) {
            *user = (struct user){uid, gid, fields[0], fields[5]};
            return true;
        }
    return false;
}

static bool find_group(char *groups, const char *name, uint32_t *gid)
{
    char *fields[3];
    while (next_line(&groups, fields, 3))
        if (!strcmp(fields[0], name) && is_number(fields[2], gid))
            return true;
    return false;
}

static bool contains(const gid_t *groups, size_t count, gid_t wanted)
{
    while (count && *groups != wanted)
        groups++, count--;
    return count;
}

static bool add_group(struct start *start, gid_t gid)
{
    if (contains(start->groups, start->group_count, gid))
        return true;
    if (start->group_count == MAX_GROUPS)
        return fail(AT_GROUP, E2BIG);
    start->groups[start->group_count++] = gid;
    return true;
}

/* Add the groups that list the user as a member. */
static bool add_groups(struct start *start, char *groups, const char *user)
{
    char *fields[4];
    uint32_t gid;
    while (next_line(&groups, fields, 4))
        for (char *member; (member = next_field(&fields[3], ','));)
            if (!strcmp(member, user) && is_number(fields[2], &gid) && !add_group(start, gid))
                return false;
    return true;
}

/* Whether this process is the user already. It may lack the right to become the user that it is. */
static bool is_user(const struct start *start)
{
    static gid_t groups[MAX_GROUPS];
    int count = getgroups(MAX_GROUPS, groups);
    if (geteuid() != start->uid || getegid() != start->gid || count < 0)
        return false;
    for (int i = 0; i < count; i++)
        if (!contains(start->groups, start->group_count, groups[i]))
            return false;
    for (size_t i = 0; i < start->group_count; i++)
        if (start->groups[i] != start->gid && !contains(groups, (size_t)count, start->groups[i]))
            return false;
    return true;
}

/* Find out who is meant by NAME or UID, then :GROUP or :GID where wanted; empty: the supervisor's own user. `passwd` and
 * `groups`: the texts of the box's files. Returns the home directory, or NULL and `failure`. */
static const char *resolve_user(struct start *start, char *wanted, char *passwd, char *groups)
{
    struct user user = {.uid = geteuid()};
    char *group = strchr(wanted, ':');
    if (group)
        *group++ = 0;
    bool is_named = *wanted && !is_number(wanted, &user.uid), has_group = group && *group;
    if (!find_user(passwd, is_named ? wanted : NULL, &user) && is_named)
        return fail(AT_USER, ENOENT), NULL;
    if (*wanted || has_group) {
        if (has_group && !is_number(group, &user.gid) && !find_group(groups, group, &user.gid))
            return fail(AT_GROUP, ENOENT), NULL;
        start->uid = user.uid;
        start->gid = user.gid;
        if (!add_group(start, user.gid) || (user.name && !has_group && !add_groups(start, groups, user.name)))
            return NULL;
        start->is_other_user = !is_user(start);
    }
    return user.home && *user.home ? user.home : "/";
}

/* ---- what the worker says of a command ---- */

static char *next_string(char **at, const char *end)
{
    char *string = *at;
    if (string == end)
        return NULL;
    *at += strlen(string) + 1;
    return string;
}

/* Parse a spec: the numbers of arguments and of variables, then user, directory, arguments and variables as strings,
 * each with a 0 behind it. The start points into `data`. Leaves room for one more variable. */
static bool parse_spec(struct start *start, char *data, size_t size, char **user)
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

/* Read a spec, and fill in what depends on the box: the user, and HOME where the worker has set none. */
static bool read_spec(struct start *start, int file)
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

/* Open a terminal of the given size. Returns its master; its other end is the command's input, output and errors. */
static int open_terminal(struct start *start, uint32_t size)
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

/* ---- killing a tree of processes ---- */

static struct process {
    pid_t pid, parent;
    char state;
    bool is_in_tree;
} processes[MAX_PROCESSES];
static size_t process_count;
static int proc = -1; /* the directory /proc, as it was when the supervisor started */

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

/* Kill the process `root`, unless that is the caller, and all that descends from it. The processes are stopped first,
 * so that none starts another one meanwhile; a process that escapes is found by the next call. Returns 0 when none was
 * left; EAGAIN when some were killed; EPERM when the caller may kill none of those left; EIO without `root`. */
static int kill_once(pid_t root)
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

/* ---- waiting ---- */

static void sleep_for(int milliseconds)
{
    nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000L}, NULL);
}

/* Wait for one of the events, for so many milliseconds (-1: for ever). Returns false where that cannot be: somebody in
 * the box, who has the same user, has lowered this process's limit of descriptors. */
static bool wait_for_events(struct pollfd *events, nfds_t count, int patience)
{
    if (poll(events, count, patience) >= 0)
        return true;
    for (nfds_t i = 0; i < count; i++)
        events[i].revents = 0;
    if (errno != EINVAL)
        return true;
    sleep_for(patience < 0 || patience > MIN_PAUSE ? MIN_PAUSE : patience);
    return false;
}

/* ---- the keeper of one command ---- */

struct kept {
    pid_t pid;
    bool has_ended;
    int status; /* once it has ended */
};

/* Reap what has ended. Returns false where that may not have been all: a box that floods its keepers with ended
 * processes keeps none from its other work. */
static bool reap_kept(struct kept *kept)
{
    for (int count = 0, status; count < BATCH; count++) {
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid <= 0)
            return true;
        if (pid == kept->pid) {
            kept->has_ended = true;
            kept->status = status;
        }
    }
    return false;
}

/* Wait for a signal, or a packet, for so many milliseconds (-1: for ever). A keeper needs no signal but SIGCHLD. */
static void wait_for(int socket, int patience)
{
    struct signalfd_siginfo batch[BATCH];
    struct pollfd events[] = {{.fd = signals, .events = POLLIN}, {.fd = socket, .events = POLLIN}};
    if (wait_for_events(events, 2, patience) && events[0].revents && read(signals, batch, sizeof batch) < 0)
        return;
}

/* Kill all that the keeper has under it. Returns 0, or an errno when something may be left. */
static int kill_kept(struct kept *kept)
{
    int left = EAGAIN;
    for (int round = 0; round < KILL_ROUNDS; round++) {
        bool is_all = reap_kept(kept);
        if ((left = kill_once(getpid())) != EAGAIN)
            break;
        wait_for(-1, is_all ? 10 : 0);
    }
    if (left == EIO) /* /proc shows nothing */
        kill(kept->pid, SIGKILL);
    return left;
}

static struct packet exited(uint32_t id, int status)
{
    struct packet packet = {.type = EXITED, .id = id, .a = (uint32_t)WEXITSTATUS(status)};
    if (WIFSIGNALED(status)) {
        packet.flags = BY_SIGNAL;
        packet.a = 128 + (uint32_t)WTERMSIG(status);
    }
    return packet;
}

/* Start the command of a SPAWN packet. Returns its pid, or -1 and `failure`; `master` is its terminal's, or -1. */
static pid_t start_kept(struct received *request, pid_t *pid, int *master)
{
    static struct start start;
    start.pid = pid;
    *master = -1;
    if (!read_spec(&start, request->descriptors[0]))
        return -1;
    if (request->packet.flags & TERMINAL) {
        if ((*master = open_terminal(&start, request->packet.a)) < 0)
            return -1;
    } else
        memcpy(start.descriptors, request->descriptors + 1, sizeof start.descriptors);
    pid_t started = start_program(&start);
    if (*master >= 0)
        close(start.descriptors[0]);
    return started;
}

/* Do what the supervisor asks for. Returns 0 or an errno. */
static int serve(struct kept *kept, const struct packet *request)
{
    if (request->type == KILL)
        return kill_kept(kept);
    return kill(kept->pid, (int)request->a) < 0 ? errno : 0; /* not reaped, so its pid is no other process's */
}

/* Be the keeper of a command: start it, do what the supervisor asks for, and tell it how the command ends. */
static _Noreturn void keep(struct received *spawn, pid_t *pid, int supervisor)
{
    uint32_t id = spawn->packet.id;
    struct received request;
    int master, got = 0, patience = 0;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    struct kept kept = {.pid = start_kept(spawn, pid, &master)};
    close_all(spawn);
    struct packet report = {.type = STARTED, .id = id, .a = (uint32_t)kept.pid};
    if (kept.pid < 0)
        report = (struct packet){.type = FAILED, .id = id, .a = failure.error, .b = failure.stage};
    send_packet(supervisor, &report, kept.pid < 0 ? -1 : master, 0);
    close(master);
    while (kept.pid > 0 && !kept.has_ended) {
        wait_for(supervisor, patience);
        patience = reap_kept(&kept) ? -1 : 0;
        if (!kept.has_ended && (got = receive_packet(supervisor, &request)) > 0) {
            report = (struct packet){.type = ANSWER, .id = id, .a = (uint32_t)serve(&kept, &request.packet)};
            send_packet(supervisor, &report, -1, 0);
        }
        if (got < 0) { /* the supervisor was killed: nobody can stop the command any more */
            kill_kept(&kept);
            break;
        }
    }
    if (kept.has_ended) {
        report = exited(id, kept.status);
        send_packet(supervisor, &report, -1, 0);
    }
    _exit(0);
}

/* ---- the supervisor ---- */

static struct command {
    uint32_t id;    /* 0: this entry is free */
    pid_t keeper;   /* 0: none any more */
    pid_t *pid;     /* in memory that the keepers share; 0: not started, or ended */
    int socket;     /* to the keeper; -1: none any more */
    int master;     /* of the terminal, for as often as a worker needs it; -1: none */
    unsigned asked; /* requests that the keeper has not answered yet */
    struct packet started, answer, ended; /* what the keeper has said; type 0: nothing */
    bool tell_started, tell_answer, tell_ended; /* the worker is to be told */
} commands[MAX_COMMANDS];

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static int connection = -1;        /* to the worker */
static int64_t next_dial;          /* milliseconds of the monotonic clock */
static int next_pause = MIN_PAUSE; /* milliseconds */
static struct packet own_answer;   /* an answer that no keeper has given */
static bool tell_hello, tell_own_answer;
static pid_t main_pid; /* 0: there is no main command */
static bool awaits_main;
static bool has_reaped_all = true;

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* Find a command by its id; 0 finds a free entry. */
static struct command *find(uint32_t id)
{
    for (struct command *c = commands; c < commands + MAX_COMMANDS; c++)
        if (c->id == id)
            return c;
    return NULL;
}

static void close_descriptor(int *descriptor)
{
    if (*descriptor >= 0)
        close(*descriptor);
    *descriptor = -1;
}

static void forget(struct command *command)
{
    close_descriptor(&command->socket);
    close_descriptor(&command->master);
    *command->pid = 0;
    *command = (struct command){.socket = -1, .master = -1, .pid = command->pid};
}

/* End the connection. What was asked for on it is answered on no other. */
static void disconnect(void)
{
    close_descriptor(&connection);
    next_dial = now() + next_pause;
    next_pause = next_pause * 2 < MAX_PAUSE ? next_pause * 2 : MAX_PAUSE;
    tell_own_answer = false;
    for (struct command *c = commands; c < commands + MAX_COMMANDS; c++) {
        c->asked = 0;
        c->tell_answer = false;
    }
}

/* Connect to the worker. It is to be told of each command how it ended or, if it runs or has a terminal, started. */
static void dial(void)
{
    connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof address) < 0) {
        disconnect();
        return;
    }
    tell_hello = true;
    for (struct command *c = commands; c < commands + MAX_COMMANDS; c++) {
        c->tell_ended = c->ended.type;
        c->tell_started = c->started.type && (!c->ended.type || c->master >= 0);
    }
}

/* Tell the worker, if it is to be told. Returns false where it takes nothing now, or is gone. */
static bool tell(bool *is_due, const struct packet *packet, int descriptor)
{
    int error = !*is_due ? 0 : connection < 0 ? EPIPE : send_packet(connection, packet, descriptor, MSG_DONTWAIT);
    if (error && error != EAGAIN && connection >= 0)
        disconnect();
    *is_due = *is_due && error;
    return !error;
}

/* Tell the worker what it is to be told of a command. Returns false where that was not all. */
static bool tell_of(struct command *command)
{
    struct packet too_late = {.type = ANSWER, .id = command->id, .a = ESRCH};
    if (!tell(&command->tell_started, &command->started, command->master) ||
        !tell(&command->tell_answer, &command->answer, -1))
        return false;
    for (bool is_due = true; command->tell_ended && command->asked; command->asked--, is_due = true)
        if (!tell(&is_due, &too_late, -1))
            return false;
    if (!tell(&command->tell_ended, &command->ended, -1))
        return false;
    if (command->ended.type == FAILED)
        forget(command);
    return true;
}

/* Tell the worker all that it is to be told. Returns false where it takes no more at present. */
static bool tell_all(void)
{
    struct packet hello = {.type = HELLO, .flags = awaits_main ? AWAITS_MAIN : 0, .a = PROTOCOL};
    for (struct command *c = commands; c < commands + MAX_COMMANDS; c++)
        hello.b += c->id != 0;
    if (!tell(&tell_hello, &hello, -1) || !tell(&tell_own_answer, &own_answer, -1))
        return false;
    for (struct command *c = commands; c < commands + MAX_COMMANDS; c++)
        if (c->id && !tell_of(c))
            return false;
    return true;
}

/* Take one packet from a keeper. Returns false when there is none. */
static bool hear_keeper(struct command *command)
{
    struct received report;
    int got = receive_packet(command->socket, &report);
    if (got < 0)
        close_descriptor(&command->socket);
    if (got <= 0)
        return false;
    switch (report.packet.type) {
    case STARTED:
        command->started = report.packet;
        command->master = report.count ? report.descriptors[0] : -1;
        command->tell_started = true;
        break;
    case ANSWER:
        if (command->asked && !command->tell_answer) {
            command->asked--;
            command->answer = report.packet;
            command->tell_answer = true;
        }
        break;
    default:
        command->ended = report.packet;
        *command->pid = 0;
        command->tell_ended = true;
        close_descriptor(&command->socket);
    }
    return true;
}

/* A keeper has ended. Where it has not told the end of its command, somebody in the box has killed it. */
static void bury(struct command *command)
{
    command->keeper = 0;
    while (command->socket >= 0 && hear_keeper(command))
        ;
    if (command->ended.type)
        return;
    if (*command->pid)
        kill_once(*command->pid);
    *command->pid = 0;
    command->ended = (struct packet){
        .type = EXITED, .flags = BY_SIGNAL | LOST, .id = command->id, .a = 128 + SIGKILL};
    command->tell_ended = true;
    close_descriptor(&command->socket);
}

/* Reap keepers and orphans, some at a time. When the main command has ended, so does the box. */
static void reap(void)
{
    has_reaped_all = false;
    for (int count = 0, status; count < BATCH; count++) {
        pid_t pid = waitpid(-1, &status, WNOHANG | WUNTRACED);
        if (pid <= 0) {
            has_reaped_all = true;
            return;
        }
        if (pid == main_pid && !WIFSTOPPED(status))
            _exit((int)exited(0, status).a);
        for (struct command *c = commands; c < commands + MAX_COMMANDS; c++) {
            if (c->keeper == pid && WIFSTOPPED(status))
                kill(pid, SIGCONT); /* somebody in the box has stopped it */
            else if (c->keeper == pid)
                bury(c);
            else if (*c->pid == pid && !WIFSTOPPED(status))
                *c->pid = 0; /* its keeper was killed, and it has ended since */
        }
    }
}

static bool ends_by_default(uint32_t number)
{
    return number != SIGCONT && number != SIGURG && number != SIGWINCH && number != SIGTSTP && number != SIGTTIN &&
           number != SIGTTOU;
}

static void handle_signals(void)
{
    struct signalfd_siginfo batch[BATCH];
    ssize_t size = read(signals, batch, sizeof batch);
    for (struct signalfd_siginfo *signal = batch; (char *)signal < (char *)batch + size; signal++)
        if (signal->ssi_signo == SIGCHLD)
            has_reaped_all = false;
        else if (main_pid)
            kill(main_pid, (int)signal->ssi_signo);
        else if (awaits_main && ends_by_default(signal->ssi_signo))
            _exit(128 + (int)signal->ssi_signo);
}

static void answer(uint8_t type, uint32_t id, int error, uint32_t stage)
{
    own_answer = (struct packet){.type = type, .id = id, .a = (uint32_t)error, .b = stage};
    tell_own_answer = true;
}

/* Start a keeper for the command of a SPAWN packet. Returns 0 or an errno. */
static int spawn(struct received *request)
{
    struct command *command = find(request->packet.id);
    int pair[2];
    if (command) { /* the worker asks again: it did not hear the answer */
        command->tell_started = command->started.type;
        command->tell_ended = command->ended.type;
        return 0;
    }
    if (request->is_cut)
        return EMFILE;
    if (!(command = find(0)))
        return EAGAIN;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return errno;
    pid_t keeper = fork();
    if (keeper == 0) {
        close(pair[0]);
        close_descriptor(&connection);
        for (struct command *c = commands; c < commands + MAX_COMMANDS; c++) {
            close_descriptor(&c->socket);
            close_descriptor(&c->master);
        }
        keep(request, command->pid, pair[1]);
    }
    int error = keeper < 0 ? errno : 0;
    close(pair[1]);
    if (error)
        close(pair[0]);
    else {
        command->id = request->packet.id;
        command->keeper = keeper;
        command->socket = pair[0];
    }
    return error;
}

/* Pass a request on to the keeper of its command. Returns 0 or an errno. */
static int pass_on(const struct packet *request)
{
    struct command *command = find(request->id);
    int error = !command || command->socket < 0 ? ESRCH : send_packet(command->socket, request, -1, MSG_DONTWAIT);
    if (!error)
        command->asked++;
    if (!error && request->type == KILL && !command->started.type)
        kill_once(command->keeper); /* which may wait for the start without end: for a disk, say */
    return error == EPIPE ? ESRCH : error;
}

/* Let go of the box's input and output, so that its output ends with its commands. */
static void drop_output(void)
{
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int i = 0; nothing >= 0 && i < 3; i++)
        dup2(nothing, i);
    if (nothing > 2)
        close(nothing);
}

/* End the box, whose main command cannot be executed. */
static _Noreturn void give_up(const char *name, int error)
{
    char *text = strerror(error);
    dprintf(STDERR_FILENO, "exec %s: %c%s\n", name, tolower((unsigned char)*text), text + 1);
    _exit(error == ENOENT ? 127 : 126);
}

/* Start the main command of the box; ends the box where it cannot be executed. */
static void start_main(struct start *start)
{
    start->is_main = true;
    start->pid = &main_pid;
    main_pid = start_program(start);
    if (main_pid <= 0)
        give_up(start->argv[0], (int)failure.error);
    drop_output();
}

/* Become the main command, as process 1; ends the box where it cannot be executed. */
static _Noreturn void become_main(const struct start *start)
{
    sigprocmask(SIG_SETMASK, &original_mask, NULL);
    execute(start->argv, start->envp);
    give_up(start->argv[0], errno);
}

/* Start the main command that was waited for, or become it (AS_FIRST), and tell the worker. Nothing is started where
 * its spec is bad or its directory cannot be entered. */
static void begin_main(struct received *request)
{
    static struct start start;
    uint32_t id = request->packet.id;
    bool is_first = request->packet.flags & AS_FIRST;
    failure.stage = 0;
    if (awaits_main && read_spec(&start, request->descriptors[0]) && chdir(start.directory))
        fail(AT_DIRECTORY, errno);
    if (failure.stage)
        answer(FAILED, id, (int)failure.error, failure.stage);
    else {
        if (awaits_main && !is_first) {
            start.directory = NULL;
            start_main(&start);
        }
        answer(STARTED, id, main_pid ? main_pid : getpid(), 0);
    }
    tell(&tell_own_answer, &own_answer, -1); /* now, since the command may be the box's end */
    if (awaits_main && !failure.stage && is_first)
        become_main(&start);
    awaits_main = awaits_main && failure.stage;
}

/* Do what a packet of the worker says. Returns false where it says nothing that a worker would. */
static bool obey(struct received *request)
{
    uint32_t id = request->packet.id;
    struct command *command = find(id);
    bool takes_streams = request->packet.type == SPAWN && !(request->packet.flags & TERMINAL);
    int wanted = takes_streams ? 4 : request->packet.type == SPAWN || request->packet.type == MAIN, error;
    if (!id || (request->count != wanted && !request->is_cut))
        return false;
    switch (request->packet.type) {
    case SPAWN:
        if ((error = spawn(request)))
            answer(FAILED, id, error, AT_RESOURCES);
        return true;
    case MAIN:
        if (request->is_cut)
            answer(FAILED, id, EMFILE, AT_RESOURCES);
        else
            begin_main(request);
        return true;
    case SIGNAL:
    case KILL:
        if ((error = pass_on(&request->packet)))
            answer(ANSWER, id, error, 0);
        return true;
    case FORGET:
        if (command && command->ended.type)
            forget(command);
        return true;
    default:
        return false;
    }
}

/* Take one packet from the worker. */
static void hear_worker(void)
{
    struct received request;
    int got = receive_packet(connection, &request);
    if (got < 0 || (got > 0 && !obey(&request)))
        disconnect();
    else
        next_pause = MIN_PAUSE;
    close_all(&request);
}

/* Wait until something happens, and handle it. While the worker takes no packets, none is taken from it or a keeper. */
static void step(void)
{
    static struct pollfd events[2 + MAX_COMMANDS];
    bool is_blocked = connection >= 0 && !tell_all() && connection >= 0;
    int64_t patience = connection < 0 ? next_dial - now() : -1;
    nfds_t count = 2;
    if (connection < 0 && patience <= 0)
        return dial();
    events[0] = (struct pollfd){.fd = signals, .events = POLLIN};
    events[1] = (struct pollfd){.fd = connection, .events = is_blocked ? POLLOUT : POLLIN};
    for (size_t i = 0; i < MAX_COMMANDS && !is_blocked; i++) {
        events[2 + i] = (struct pollfd){.fd = commands[i].id ? commands[i].socket : -1, .events = POLLIN};
        if (commands[i].id)
            count = i + 3;
    }
    if (!wait_for_events(events, count, has_reaped_all ? (int)patience : 0)) {
        if (connection >= 0)
            disconnect(); /* so that the worker does not wait for answers */
        events[0].revents = POLLIN;
        has_reaped_all = false;
    }
    for (nfds_t i = 2; i < count; i++)
        if (events[i].revents)
            hear_keeper(&commands[i - 2]);
    if (events[1].revents && !is_blocked)
        hear_worker();
    if (events[0].revents)
        handle_signals();
    if (!has_reaped_all)
        reap();
}

int main(int argc, char **argv)
{
    sigset_t all;
    if (argc == 2 && !strcmp(argv[1], "--files"))
        return serve_files();
    const char *name = strrchr(argv[0], '/');
    int length = name ? (int)(name + 1 - argv[0]) : 0;
    if (snprintf(address.sun_path, sizeof address.sun_path, "%.*ssocket", length, argv[0]) >=
        (int)sizeof address.sun_path)
        return 125;
    memset(&all, 0xff, sizeof all); /* sigfillset would leave out those that some C libraries keep for themselves */
    sigprocmask(SIG_BLOCK, &all, &original_mask);
    signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
    proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t *pids = mmap(NULL, MAX_COMMANDS * sizeof *pids, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (signals < 0 || pids == MAP_FAILED)
        return 125;
    for (struct command *c = commands; c < commands + MAX_COMMANDS; c++)
        *c = (struct command){.socket = -1, .master = -1, .pid = pids++};
    if (argc > 2 && !strcmp(argv[1], "--")) {
        static struct start start;
        start.argv = argv + 2;
        start.envp = environ;
        start_main(&start);
    } else if (argc == 2 && !strcmp(argv[1], "--wait"))
        awaits_main = true; /* which has the output until then */
    else
        drop_output();
    for (;;)
        step();
}

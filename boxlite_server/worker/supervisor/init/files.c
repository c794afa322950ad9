/*
 * The file service: `init --files` reads and writes small files of the box for the worker.
 *
 * It runs as a command of the box does, with the rights of the box's processes, so that no link leads out of the box.
 * It takes requests from its input and answers them on its output, one after the other, until its input ends. Whatever
 * it cannot do as the engine would, it leaves undone and says so; the worker then has the engine do it. So it answers no
 * more than whether a path exists, the content of a regular file, and that such a file was written.
 */
#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MQUEUE_MAGIC 0x19800202

enum {
    MAX_FILE = 1 << 20, /* bytes */
    PATIENCE = 10,      /* seconds for one request, and until the next */
};
enum { STAT = 'S', READ = 'R', WRITE = 'W' };

/* In front of the path and, to be written, the content. */
struct request {
    uint8_t type, reserved[3];
    uint32_t path_size, size; /* bytes */
    uint32_t mode, uid, gid;  /* of the file to write, as is the time */
    int64_t seconds;
    uint32_t nanoseconds, reserved_too;
};
_Static_assert(sizeof(struct request) == 40, "the request has no padding");

/* In front of the content that was read. */
struct answer {
    uint32_t error; /* 0, or the number of the reason why nothing was done */
    uint32_t size;  /* bytes */
    uint32_t mode, uid, gid, reserved;
    int64_t seconds;
};
_Static_assert(sizeof(struct answer) == 32, "the answer has no padding");

static char path[PATH_MAX];
static struct {
    struct answer answer;
    char content[MAX_FILE + 1]; /* of either direction; one byte shows that a file is too large */
} told;

/* Whether a file lies in a file system that exists in the running box alone, so that the engine does not see it. */
static bool is_fleeting(int file)
{
    struct statfs system;
    if (fstatfs(file, &system))
        return true;
    switch ((uint32_t)system.f_type) {
    case PROC_SUPER_MAGIC:
    case SYSFS_MAGIC:
    case TMPFS_MAGIC:
    case RAMFS_MAGIC:
    case DEVPTS_SUPER_MAGIC:
    case CGROUP_SUPER_MAGIC:
    case CGROUP2_SUPER_MAGIC:
    case NSFS_MAGIC:
    case MQUEUE_MAGIC:
    case DEBUGFS_MAGIC:
    case TRACEFS_MAGIC:
    case SECURITYFS_MAGIC:
    case BPF_FS_MAGIC:
        return true;
    default:
        return false;
    }
}

/* Open a path as the engine resolves it: not through those links of /proc that are more than their text, where the
 * kernel knows of that. Returns a descriptor, or -1 with errno set. */
static int open_path(int flags)
{
    struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC), .resolve = RESOLVE_NO_MAGICLINKS};
    long file = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
    if (file < 0 && (errno == ENOSYS || errno == EPERM))
        return open(path, flags | O_CLOEXEC);
    return (int)file;
}

static void describe(const struct stat *state)
{
    told.answer.mode = state->st_mode;
    told.answer.uid = state->st_uid;
    told.answer.gid = state->st_gid;
    told.answer.seconds = state->st_mtime;
}

static int look(void)
{
    struct stat state;
    int file = open_path(O_PATH | O_NOFOLLOW);
    if (file < 0)
        return errno;
    int error = fstat(file, &state) ? errno : is_fleeting(file) ? ENOTSUP : 0;
    describe(&state);
    close(file);
    return error;
}

/* Read an open file whole. */
static int read_content(int file)
{
    struct stat state;
    ssize_t size;
    if (fstat(file, &state))
        return errno;
    if (!S_ISREG(state.st_mode) || is_fleeting(file) || fgetxattr(file, "security.capability", NULL, 0) >= 0)
        return ENOTSUP;
    if (state.st_size > MAX_FILE)
        return EFBIG;
    while ((size = read(file, told.content + told.answer.size, sizeof told.content - told.answer.size)) > 0)
        told.answer.size += (uint32_t)size;
    describe(&state);
    return size < 0 ? errno : told.answer.size > MAX_FILE ? EFBIG : 0;
}

static int read_file(void)
{
    int error = look();
    if (error)
        return error;
    if (!S_ISREG(told.answer.mode)) /* to open a device may do something */
        return ENOTSUP;
    int file = open_path(O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (file < 0)
        return errno;
    error = read_content(file);
    close(file);
    return error;
}

/* Give a new file its content and attributes. The mode comes after the owner, who would take bits of it away. */
static int fill(int file, const struct request *request)
{
    struct timespec time = {.tv_sec = request->seconds, .tv_nsec = request->nanoseconds};
    struct timespec times[2] = {time, time};
    struct stat state;
    for (uint32_t done = 0; done < request->size;) {
        ssize_t size = write(file, told.content + done, request->size - done);
        if (size <= 0)
            return size < 0 ? errno : EIO;
        done += (uint32_t)size;
    }
    if (fstat(file, &state))
        return errno;
    if ((state.st_uid != request->uid || state.st_gid != request->gid) && fchown(file, request->uid, request->gid))
        return errno;
    if (fchmod(file, request->mode) || futimens(file, times) || fstat(file, &state))
        return errno;
    return (state.st_mode & 07777) == request->mode ? 0 : EPERM;
}

/* Write a file beside the place that it is to take, and have it take that place at once. */
static int write_beside(int directory, const char *name, const struct request *request)
{
    char new[32];
    uint64_t number;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number)
        return EAGAIN;
    snprintf(new, sizeof new, ".boxlite-%016llx", (unsigned long long)number);
    int file = openat(directory, new, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return errno;
    int error = fill(file, request);
    if (close(file) && !error)
        error = errno;
    if (!error && renameat(directory, new, directory, name))
        error = errno;
    if (error)
        unlinkat(directory, new, 0);
    return error;
}

static int write_file(const struct request *request)
{
    char name[NAME_MAX + 1], *slash = strrchr(path, '/');
    if (snprintf(name, sizeof name, "%s", slash + 1) >= (int)sizeof name)
        return ENAMETOOLONG;
    slash[slash == path] = 0;
    int directory = open_path(O_PATH | O_DIRECTORY);
    if (directory < 0)
        return errno;
    int error = is_fleeting(directory) ? ENOTSUP : write_beside(directory, name, request);
    close(directory);
    return error;
}

/* Read so many bytes of a request. Returns false where the input has ended. */
static bool receive(void *to, size_t size)
{
    for (ssize_t got; size; to = (char *)to + got, size -= (size_t)got)
        if ((got = read(STDIN_FILENO, to, size)) <= 0)
            return false;
    return true;
}

static bool answer(void)
{
    size_t size = sizeof told.answer + told.answer.size;
    const char *from = (const char *)&told;
    for (ssize_t sent; size; from += sent, size -= (size_t)sent)
        if ((sent = write(STDOUT_FILENO, from, size)) <= 0)
            return false;
    return true;
}

/* Take a request, with its path and content. Returns false for what no worker sends, and at the end. */
static bool take(struct request *request)
{
    if (!receive(request, sizeof *request) || !request->path_size || request->path_size >= sizeof path ||
        request->size > MAX_FILE || request->mode > 07777 || request->nanoseconds > 999999999 ||
        (request->size && request->type != WRITE))
        return false;
    path[request->path_size] = 0;
    return receive(path, request->path_size) && receive(told.content, request->size) && *path == '/' &&
           strlen(path) == request->path_size;
}

static int obey(const struct request *request)
{
    switch (request->type) {
    case STAT:
        return look();
    case READ:
        return read_file();
    case WRITE:
        return write_file(request);
    default:
        return ENOSYS;
    }
}

int serve_files(void)
{
    struct request request;
    prctl(PR_SET_DUMPABLE, 0);
    signal(SIGXFSZ, SIG_IGN); /* a file that is too large is told by an error number */
    for (;;) {
        alarm(PATIENCE); /* which kills this process */
        if (!take(&request))
            return 0;
        told.answer = (struct answer){0};
        told.answer.error = (uint32_t)obey(&request);
        if (told.answer.error)
            told.answer = (struct answer){.error = told.answer.error};
        if (!answer())
            return 0;
    }
}

/*
 * The file service: `init --files` reads small files of the box for the worker, lists directories, and writes files.
 *
 * It runs as a command of the box does, with the rights of the box's processes, so that no link leads out of the box.
 * It takes requests from its input and answers them on its output, one after the other, until its input ends. Whatever
 * it cannot do as the engine would, it leaves undone and says so; the worker then has the engine do it. So it answers no
 * more than what is at a path, what a directory has, the content of a regular file, and that such a file was written.
 */
#define _GNU_SOURCE
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
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
    MAX_FILE = 1 << 20, /* bytes of a small file, and of a piece of a large one */
    PATIENCE = 10,      /* seconds for one request or piece, and until the next */
    NEW_NAME = 32,      /* bytes */
    MAX_ENTRIES = 1000, /* of a directory, in one answer */
};
enum { STAT = 'S', READ = 'R', LIST = 'D', WRITE = 'W', WRITE_LARGE = 'L' };

/* In front of the path and, to be written, the content; to be listed, the name behind which the answer begins. The content
 * of a large file, whatever its size, follows the answer that it can be written; a second answer follows the content. */
struct request {
    uint8_t type, reserved[3];
    uint32_t path_size, size; /* bytes */
    uint32_t mode, uid, gid;  /* of the file to write, as is the time */
    int64_t seconds;
    uint32_t nanoseconds, reserved_too;
};
_Static_assert(sizeof(struct request) == 40, "the request has no padding");

/* In front of the content that was read, of the details of a path, or of the entries of a directory. */
struct answer {
    uint32_t error; /* 0, or the number of the reason why nothing was done */
    uint32_t size;  /* bytes */
    uint32_t mode, uid, gid, reserved;
    int64_t seconds;
};
_Static_assert(sizeof(struct answer) == 32, "the answer has no padding");

/* What else STAT tells; the text of a symbolic link follows. */
struct details {
    uint64_t size; /* bytes */
    uint32_t nanoseconds, reserved;
};
_Static_assert(sizeof(struct details) == 16, "the details have no padding");

/* In front of the name of an entry of a directory and, of a symbolic link, its text. */
struct entry {
    uint64_t size;
    int64_t seconds;
    uint32_t mode;
    uint16_t name_size, text_size; /* bytes */
};
_Static_assert(sizeof(struct entry) == 24, "an entry has no padding");

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
    if (!error) {
        struct details details = {(uint64_t)state.st_size, (uint32_t)state.st_mtim.tv_nsec, 0};
        describe(&state);
        memcpy(told.content, &details, sizeof details);
        told.answer.size = sizeof details;
        ssize_t text = S_ISLNK(state.st_mode) ? readlinkat(file, "", told.content + sizeof details, PATH_MAX) : 0;
        if (text < 0)
            error = errno;
        else
            told.answer.size += (uint32_t)text;
    }
    close(file);
    return error;
}

/* Keep the first names of a directory, in the order of their bytes, that come behind `after`: so many as one answer may
 * hold, and one more, which shows that there are others. Returns how many there are, or -1 with errno set. */
static int first_names(DIR *directory, const char *after, char *names[MAX_ENTRIES + 1])
{
    static char memory[MAX_ENTRIES + 1][NAME_MAX + 1];
    int count = 0;
    for (struct dirent *found; errno = 0, (found = readdir(directory));) {
        const char *name = found->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..") || strcmp(name, after) <= 0)
            continue;
        int low = 0, high = count;
        while (low < high) {
            int middle = (low + high) / 2;
            if (strcmp(names[middle], name) < 0)
                low = middle + 1;
            else
                high = middle;
        }
        if (low > MAX_ENTRIES || (low < count && !strcmp(names[low], name)))
            continue;
        bool is_full = count > MAX_ENTRIES;
        char *place = is_full ? names[count - 1] : memory[count];
        count += !is_full;
        memmove(&names[low + 1], &names[low], sizeof *names * (size_t)(count - 1 - low));
        names[low] = strcpy(place, name);
    }
    return errno ? -1 : count;
}

/* Tell of one entry. Returns false where the answer has no room for it. What has gone meanwhile is left out. */
static bool tell_entry(int directory, const char *name)
{
    struct stat state;
    char text[PATH_MAX];
    ssize_t length = 0;
    if (fstatat(directory, name, &state, AT_SYMLINK_NOFOLLOW))
        return true;
    if (S_ISLNK(state.st_mode) && (length = readlinkat(directory, name, text, sizeof text)) < 0)
        return true;
    struct entry entry = {(uint64_t)state.st_size, state.st_mtime, state.st_mode, (uint16_t)strlen(name),
                          (uint16_t)length};
    if (told.answer.size + sizeof entry + entry.name_size + entry.text_size > MAX_FILE)
        return false;
    char *to = told.content + told.answer.size;
    to = (char *)memcpy(to, &entry, sizeof entry) + sizeof entry;
    to = (char *)memcpy(to, name, entry.name_size) + entry.name_size;
    to = (char *)memcpy(to, text, entry.text_size) + entry.text_size;
    told.answer.size = (uint32_t)(to - told.content);
    return true;
}

/* List a directory behind the name that was received. The first byte tells whether it has more than follows. */
static int list(const struct request *request)
{
    char after[NAME_MAX + 1] = "", *names[MAX_ENTRIES + 1];
    if (request->size >= sizeof after)
        return ENAMETOOLONG;
    memcpy(after, told.content, request->size);
    int file = open_path(O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (file < 0)
        return errno;
    DIR *directory = is_fleeting(file) ? (errno = ENOTSUP, NULL) : fdopendir(file);
    if (!directory) {
        int error = errno;
        close(file);
        return error;
    }
    int count = first_names(directory, after, names), told_of = 0, error = count < 0 ? errno : 0;
    told.answer.size = 1;
    while (told_of < count && told_of < MAX_ENTRIES && tell_entry(file, names[told_of]))
        told_of++;
    *told.content = told_of < count;
    closedir(directory);
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
    told.answer.size = 0;
    if (!S_ISREG(told.answer.mode)) /* to open a device may do something */
        return ENOTSUP;
    int file = open_path(O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (file < 0)
        return errno;
    error = read_content(file);
    close(file);
    return error;
}

/* Write what was received. */
static int put(int file, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t written = write(file, told.content + done, size - done);
        if (written <= 0)
            return written < 0 ? errno : EIO;
        done += (size_t)written;
    }
    return 0;
}

/* Give a new file its attributes. The mode comes after the owner, who would take bits of it away. */
static int set_attributes(int file, const struct request *request)
{
    struct timespec time = {.tv_sec = request->seconds, .tv_nsec = request->nanoseconds};
    struct timespec times[2] = {time, time};
    struct stat state;
    if (fstat(file, &state))
        return errno;
    if ((state.st_uid != request->uid || state.st_gid != request->gid) && fchown(file, request->uid, request->gid))
        return errno;
    if (fchmod(file, request->mode) || futimens(file, times) || fstat(file, &state))
        return errno;
    return (state.st_mode & 07777) == request->mode ? 0 : EPERM;
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

/* Make a name for a new file, beside the place that the file is to take. Returns false where there is none yet. */
static bool make_name(char name[NEW_NAME])
{
    uint64_t number;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number)
        return false;
    snprintf(name, NEW_NAME, ".boxlite-%016llx", (unsigned long long)number);
    return true;
}

static int exchange(int directory, const char *one, const char *other)
{
    return (int)syscall(SYS_renameat2, directory, one, directory, other, RENAME_EXCHANGE);
}

/* Have a new file take its place at once. A small file that is there changes places with it, and is removed: a file
 * system that is told to replace a file may write the new one to the disk first. Only a small one, since an exchange may
 * copy it out of the box's image. */
static int take_place(int directory, const char *new, const char *name)
{
    struct stat old;
    int error = 0;
    bool is_small = !fstatat(directory, name, &old, AT_SYMLINK_NOFOLLOW) && S_ISREG(old.st_mode) &&
                    old.st_size <= MAX_FILE;
    if (is_small && !exchange(directory, new, name)) {
        if (!unlinkat(directory, new, 0))
            return 0;
        error = errno; /* the box has put something else there meanwhile */
        exchange(directory, new, name);
    } else if (renameat(directory, new, directory, name)) {
        error = errno;
    }
    if (error)
        unlinkat(directory, new, 0);
    return error;
}

static int write_small(int directory, const char *name, const struct request *request)
{
    char new[NEW_NAME];
    if (!make_name(new))
        return EAGAIN;
    int file = openat(directory, new, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return errno;
    int error = put(file, request->size);
    if (!error)
        error = set_attributes(file, request);
    if (close(file) && !error)
        error = errno;
    if (error)
        unlinkat(directory, new, 0);
    return error ? error : take_place(directory, new, name);
}

/* Move the content of a large file from the input to the file. Exits when that fails: the worker may still be sending.
 */
static void take_content(int file, uint32_t left)
{
    for (ssize_t size; left; left -= (uint32_t)size) {
        alarm(PATIENCE);
        size = read(STDIN_FILENO, told.content, left < MAX_FILE ? left : MAX_FILE);
        if (size <= 0 || put(file, (size_t)size))
            _exit(1);
    }
}

/* Write a file that has no name until it is whole: whatever ends this process leaves nothing behind. */
static int write_large(int directory, const char *name, const struct request *request)
{
    char new[NEW_NAME], opened[32];
    if (!make_name(new))
        return EAGAIN;
    int file = openat(directory, ".", O_WRONLY | O_TMPFILE | O_CLOEXEC, 0600);
    if (file < 0)
        return errno;
    if (!answer())
        _exit(1);
    take_content(file, request->size);
    alarm(0); /* a file system may write all to the disk first; the worker knows how long to wait for that */
    snprintf(opened, sizeof opened, "/proc/self/fd/%d", file);
    int error = set_attributes(file, request);
    if (!error && linkat(AT_FDCWD, opened, directory, new, AT_SYMLINK_FOLLOW))
        error = errno;
    close(file);
    return error ? error : take_place(directory, new, name);
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
    int error = is_fleeting(directory)          ? ENOTSUP
                : request->type == WRITE_LARGE ? write_large(directory, name, request)
                                               : write_small(directory, name, request);
    close(directory);
    return error;
}

/* Take a request, with its path and content. Returns false for what no worker sends, and at the end. */
static bool take(struct request *request)
{
    if (!receive(request, sizeof *request) || !request->path_size || request->path_size >= sizeof path ||
        request->mode > 07777 || request->nanoseconds > 999999999)
        return false;
    uint32_t size = request->type == WRITE_LARGE ? 0 : request->size;
    if (size > MAX_FILE || (size && request->type != WRITE && request->type != LIST))
        return false;
    path[request->path_size] = 0;
    return receive(path, request->path_size) && receive(told.content, size) && *path == '/' &&
           strlen(path) == request->path_size;
}

static int obey(const struct request *request)
{
    switch (request->type) {
    case STAT:
        return look();
    case READ:
        return read_file();
    case LIST:
        return list(request);
    case WRITE:
    case WRITE_LARGE:
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

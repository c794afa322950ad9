/* Users and groups as the engine's exec has them, by /etc/passwd and /etc/group of the box. */
#define _GNU_SOURCE
#include "users.h"
#include "packet.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_ACCOUNTS = 1 << 20 }; /* bytes of /etc/passwd and /etc/group that are read */

char *read_accounts(const char *path)
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

const char *resolve_user(struct start *start, char *wanted, char *passwd, char *groups)
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

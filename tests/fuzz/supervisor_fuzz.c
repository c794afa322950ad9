/* Feeds damaged specs, users and account files to the supervisor's parsers: supervisor_fuzz SEED ROUNDS. The sanitizers
 * that it is built with end it at the first fault. */
#include "spec.h"
#include "users.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint64_t state;

static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

/* A text of up to `most` pieces, in memory of just its size, so that a sanitizer sees a read behind it. */
static char *draw_text(uint32_t most)
{
    static const char *const pieces[] = {"", ":", ":", ":", ",", "\n", "\n", "box", "root", "0", "1000", "x",
                                         "4294967295", "2147483647", "99999999999999999999", "-1", " ", "#", "\xff", "/home"};
    char text[4096] = "";
    for (uint32_t count = draw(most); count; count--)
        strcat(text, pieces[draw(sizeof pieces / sizeof *pieces)]);
    return strdup(text);
}

/* A proper spec, or a damaged one. */
static char *draw_spec(size_t *size)
{
    char spec[4096];
    uint32_t argc = 1 + draw(4), envc = draw(4), at = 8;
    memcpy(spec, &argc, 4);
    memcpy(spec + 4, &envc, 4);
    for (uint32_t string = 0; string < 2 + argc + envc; string++) {
        char *text = draw_text(6);
        at += (uint32_t)sprintf(spec + at, "%s%s", string < 2 + argc ? "" : "NAME=", text) + 1;
        free(text);
    }
    for (uint32_t count = draw(4); count; count--)
        spec[draw(draw(2) ? 8 : at)] = draw(2) ? (char)draw(256) : (char)draw(3);
    *size = draw(4) ? at : draw(at + 1);
    char *copy = malloc(*size ? *size : 1);
    memcpy(copy, spec, *size);
    return copy;
}

int main(int argc, char **argv)
{
    state = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    uint64_t parsed = 0, resolved = 0, rounds = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000;
    for (uint64_t round = 0; round < rounds; round++) {
        static struct start start;
        size_t size;
        char *user, *data = draw_spec(&size), *wanted = draw_text(4), *passwd = draw_text(60), *groups = draw_text(60);
        uint32_t counts[2] = {0};
        memset(&start, 0, sizeof start);
        memcpy(counts, data, size < sizeof counts ? size : sizeof counts);
        parsed += parse_spec(&start, data, size, &user);
        if (start.argv)
            munmap(start.argv, (counts[0] + 1ul + counts[1] + 2) * sizeof(char *));
        memset(&start, 0, sizeof start);
        resolved += resolve_user(&start, wanted, passwd, groups) != NULL;
        free(data);
        free(wanted);
        free(passwd);
        free(groups);
    }
    printf("%llu of %llu specs, %llu users\n", (unsigned long long)parsed, (unsigned long long)rounds,
           (unsigned long long)resolved);
    return parsed && resolved && parsed < rounds ? 0 : 1;
}

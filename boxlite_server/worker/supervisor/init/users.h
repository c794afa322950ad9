/* Users and groups of the box. */
#pragma once

#include "start.h"

/* Read the beginning of a regular file of the box as a string, which is empty where the file cannot be read. */
char *read_accounts(const char *path);

/* Find out who is meant by NAME or UID, then :GROUP or :GID where wanted; empty: the supervisor's own user. `passwd`
 * and `groups`: the texts of the box's files. Returns the home directory, or NULL and `failure`. */
const char *resolve_user(struct start *start, char *wanted, char *passwd, char *groups);

/* Waiting for events: what the supervisor and its keepers have in common. */
#pragma once

#include <poll.h>
#include <stdbool.h>

enum {
    BATCH = 64,     /* signals or ended processes that are taken at once */
    MIN_PAUSE = 10, /* milliseconds until what has failed is tried again */
};

extern int signals; /* a signalfd for all signals of this process */

/* Wait for one of the events, for so many milliseconds (-1: for ever). Returns false where that cannot be: somebody in
 * the box, who has the same user, has lowered this process's limit of descriptors. */
bool wait_for_events(struct pollfd *events, nfds_t count, int patience);

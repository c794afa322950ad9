/* Waiting for events, also in a process that somebody in the box hinders. */
#define _GNU_SOURCE
#include "wait.h"

#include <errno.h>
#include <time.h>

int signals = -1;

static void sleep_for(int milliseconds)
{
    nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000L}, NULL);
}

bool wait_for_events(struct pollfd *events, nfds_t count, int patience)
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

/* The keeper of one command: a process that starts the command, does to it what the worker asks for, and kills all that
 * descends from it. See supervisor.c. */
#define _GNU_SOURCE
#include "keeper.h"
#include "spec.h"
#include "tree.h"
#include "wait.h"

#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KILL_ROUNDS = 500 }; /* of at most 10 ms, until nothing of a tree is left */

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

struct packet exited(uint32_t id, int status)
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

_Noreturn void keep(struct received *spawn, pid_t *pid, int supervisor)
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

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
 * The keeper ends with the command; what the command leaves behind is then adopted by the supervisor. See keeper.c.
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
#include "keeper.h"
#include "packet.h"
#include "spec.h"
#include "start.h"
#include "tree.h"
#include "wait.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PROTOCOL = 1,
    MAX_COMMANDS = 512, /* that the worker has not forgotten, at once */
    MAX_PAUSE = 500,    /* milliseconds until the worker is dialled again; the first time, MIN_PAUSE */
};

static struct command {
    uint32_t id;    /* 0: this entry is free */
    pid_t keeper;   /* 0: none any more */
    pid_t *pid;     /* in memory that the keepers share; 0: not started, or ended */
    int socket;     /* to the keeper; -1: none any more */
    int master;     /* of the terminal, for as often as a worker needs it; -1: none */
    unsigned asked; /* requests that the keeper has not answered yet */
    struct packet started, answer, ended; /* what the keeper has said; type 0: nothing */
    bool tell_started, tell_answer, tell_ended; /* the worker is to be told */
} commands[MAX_COMMANDS], *used = commands; /* entries from `used` on are free */

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

/* Find a command by its id; 0 finds a free entry before `used`. */
static struct command *find(uint32_t id)
{
    for (struct command *c = commands; c < used; c++)
        if (c->id == id)
            return c;
    return NULL;
}

/* A free entry; NULL where there is none. */
static struct command *free_entry(void)
{
    struct command *entry = find(0);
    return entry ? entry : used < commands + MAX_COMMANDS ? used++ : NULL;
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
    while (used > commands && !used[-1].id)
        used--;
}

/* End the connection. What was asked for on it is answered on no other. */
static void disconnect(void)
{
    close_descriptor(&connection);
    next_dial = now() + next_pause;
    next_pause = next_pause * 2 < MAX_PAUSE ? next_pause * 2 : MAX_PAUSE;
    tell_own_answer = false;
    for (struct command *c = commands; c < used; c++) {
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
    for (struct command *c = commands; c < used; c++) {
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
    for (struct command *c = commands; c < used; c++)
        hello.b += c->id != 0;
    if (!tell(&tell_hello, &hello, -1) || !tell(&tell_own_answer, &own_answer, -1))
        return false;
    for (struct command *c = commands; c < used; c++)
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
        for (struct command *c = commands; c < used; c++) {
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
    if (!(command = free_entry()))
        return EAGAIN;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return errno;
    pid_t keeper = fork();
    if (keeper == 0) {
        close(pair[0]);
        close_descriptor(&connection);
        for (struct command *c = commands; c < used; c++) {
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
    nfds_t count = 2 + (is_blocked ? 0 : (nfds_t)(used - commands));
    if (connection < 0 && patience <= 0)
        return dial();
    events[0] = (struct pollfd){.fd = signals, .events = POLLIN};
    events[1] = (struct pollfd){.fd = connection, .events = is_blocked ? POLLOUT : POLLIN};
    for (nfds_t i = 2; i < count; i++)
        events[i] = (struct pollfd){.fd = commands[i - 2].socket, .events = POLLIN};
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

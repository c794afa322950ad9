/* The packets in which worker, supervisor and keepers speak, and the descriptors that travel with them. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { MAX_DESCRIPTORS = 4 }; /* with one packet */

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

/* Send a packet, with a descriptor unless that is -1. Returns 0 or an errno. */
int send_packet(int to, const struct packet *packet, int descriptor, int flags);

/* Receive a packet without waiting. Returns 1, or 0 when there is none now, or -1 when none will come any more or the
 * peer does not speak in packets. */
int receive_packet(int from, struct received *received);

/* Close the descriptors that came with a packet. */
void close_all(struct received *received);

/* Packets and descriptors over a socket that keeps the bounds of messages. */
#define _GNU_SOURCE
#include "packet.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

union control {
    struct cmsghdr header; /* for the alignment */
    char space[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))];
};

int send_packet(int to, const struct packet *packet, int descriptor, int flags)
{
    union control control = {0};
    struct iovec body = {(void *)packet, sizeof *packet};
    struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1};
    if (descriptor >= 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof descriptor);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof descriptor);
        memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    }
    return sendmsg(to, &message, MSG_NOSIGNAL | flags) < 0 ? errno : 0;
}

void close_all(struct received *received)
{
    for (int i = 0; i < received->count; i++)
        close(received->descriptors[i]);
    received->count = 0;
}

int receive_packet(int from, struct received *received)
{
    union control control;
    struct iovec body = {&received->packet, sizeof received->packet};
    struct msghdr message = {
        .msg_iov = &body, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    received->count = 0;
    ssize_t size = recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message); /* the kernel makes one of all descriptors */
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        size_t bytes = header->cmsg_len - CMSG_LEN(0);
        memcpy(received->descriptors, CMSG_DATA(header), bytes);
        received->count = (int)(bytes / sizeof(int));
    }
    received->is_cut = message.msg_flags & MSG_CTRUNC;
    if (size == sizeof received->packet && !(message.msg_flags & MSG_TRUNC) && !received->packet.reserved)
        return 1;
    close_all(received);
    return -1;
}

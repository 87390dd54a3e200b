/* The network between the hosts of a test: delays and drops their packets, for each direction.
 *
 * usage: hub NAMESPACE:DEVICE:ADDRESS ...
 *
 * Makes a TUN device in each network namespace (a file, such as /run/netns/x) and passes every
 * IPv4 packet that a host sends on to the host with its destination address; any other packet is
 * dropped. The devices exist once it has printed "ready" and as long as it runs; who starts it
 * gives them their addresses. It ends with its standard input.
 *
 * Each line of input is a command, answered with "ok". SENDER and RECEIVER are positions of hosts:
 *   delay SENDER RECEIVER MICROSECONDS
 *   drop SENDER RECEIVER 0|1
 * A command also holds for packets that are on their way: they are dropped when they would arrive.
 * The packets of one direction are never reordered.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { HOSTS_MAX = 16, PACKET_MAX = 65536, BURST = 64, IPV4_HEADER = 20, DESTINATION_AT = 16 };

struct packet {
    struct packet *next;
    int64_t due; /* In nanoseconds of the steady clock. */
    ssize_t length;
    unsigned char bytes[];
};

struct path {
    struct packet *first, *last;
    int64_t delay; /* In nanoseconds. */
    bool is_dropped;
};

static struct host {
    int device;
    uint32_t address; /* In network byte order, as in a packet. */
} hosts[HOSTS_MAX];
static int count;
static struct path paths[HOSTS_MAX][HOSTS_MAX];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Make a device in a network namespace. The calling thread stays in that namespace. */
static int make_device(const char *namespace, const char *name) {
    int file = open(namespace, O_RDONLY | O_CLOEXEC);
    if (file < 0 || setns(file, CLONE_NEWNET)) fail(namespace);
    close(file);
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (device < 0) fail("/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (ioctl(device, TUNSETIFF, &request)) fail(name);
    return device;
}

static void add_host(char *description) {
    char *namespace = strtok(description, ":"), *name = strtok(NULL, ":");
    char *address = strtok(NULL, ":");
    if (!address || count == HOSTS_MAX) exit(2);
    hosts[count].address = inet_addr(address);
    hosts[count++].device = make_device(namespace, name);
}

static void obey(const char *command) {
    int sender, receiver;
    long value;
    char verb[8];
    if (sscanf(command, "%7s %d %d %ld", verb, &sender, &receiver, &value) != 4) exit(2);
    if (sender < 0 || sender >= count || receiver < 0 || receiver >= count) exit(2);
    struct path *path = &paths[sender][receiver];
    if (!strcmp(verb, "delay")) path->delay = value * 1000;
    else if (!strcmp(verb, "drop")) path->is_dropped = value;
    else exit(2);
    puts("ok");
    fflush(stdout);
}

/* Obey the commands that have arrived. A writer sends whole lines. */
static void read_commands(void) {
    char text[4096];
    ssize_t length = read(STDIN_FILENO, text, sizeof text - 1);
    if (length <= 0) exit(0);
    text[length] = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) obey(line);
}

static void deliver(const struct path *path, int receiver, const void *bytes, ssize_t length) {
    /* A packet that the receiver does not take is lost, as it would be on any network. */
    if (!path->is_dropped && write(hosts[receiver].device, bytes, length) < 0) return;
}

static void send_packet(int sender, const unsigned char *bytes, ssize_t length) {
    uint32_t address;
    if (length < IPV4_HEADER || bytes[0] >> 4 != 4) return;
    memcpy(&address, bytes + DESTINATION_AT, sizeof address);
    int receiver = 0;
    while (receiver < count && hosts[receiver].address != address) receiver++;
    if (receiver == count) return;
    struct path *path = &paths[sender][receiver];
    if (!path->delay && !path->first) {
        deliver(path, receiver, bytes, length);
        return;
    }
    struct packet *packet = malloc(sizeof *packet + length);
    if (!packet) fail("malloc");
    packet->next = NULL;
    packet->due = now() + path->delay;
    packet->length = length;
    memcpy(packet->bytes, bytes, length);
    if (path->first) path->last->next = packet;
    else path->first = packet;
    path->last = packet;
}

static void receive(int sender) {
    static unsigned char bytes[PACKET_MAX];
    for (int i = 0; i < BURST; i++) {
        ssize_t length = read(hosts[sender].device, bytes, sizeof bytes);
        if (length <= 0) return;
        send_packet(sender, bytes, length);
    }
}

/* Deliver all packets that are due. Return when the next one will be, or INT64_MAX. */
static int64_t deliver_due(void) {
    int64_t next = INT64_MAX, at = now();
    for (int sender = 0; sender < count; sender++) {
        for (int receiver = 0; receiver < count; receiver++) {
            struct path *path = &paths[sender][receiver];
            struct packet *packet;
            while ((packet = path->first) && packet->due <= at) {
                deliver(path, receiver, packet->bytes, packet->length);
                path->first = packet->next;
                free(packet);
            }
            if (packet && packet->due < next) next = packet->due;
        }
    }
    return next;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) add_host(argv[i]);
    /* A delay must not grow by the 50 microseconds that the kernel may add to a timer. */
    prctl(PR_SET_TIMERSLACK, 1);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd files[HOSTS_MAX + 1] = {{STDIN_FILENO, POLLIN, 0}};
        for (int i = 0; i < count; i++) files[i + 1] = (struct pollfd){hosts[i].device, POLLIN, 0};
        int64_t next = deliver_due(), wait = next == INT64_MAX ? next : next - now();
        if (wait < 0) wait = 0;
        struct timespec time = {wait / 1000000000, wait % 1000000000};
        if (ppoll(files, count + 1, next == INT64_MAX ? NULL : &time, NULL) < 0) fail("ppoll");
        for (int i = 0; i < count; i++) {
            /* A command does not hold for what was sent or due before it came. */
            if (files[0].revents || files[i + 1].revents) receive(i);
        }
        if (files[0].revents) {
            deliver_due();
            read_commands();
        }
    }
}

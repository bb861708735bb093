/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both ends of TCP connections in one thread, on one CPU: what a packet costs on its way is then all in this thread's
 * CPU time, soft interrupts included, and no scheduler has a part in it (iperf3 against itself is off by several
 * percent on two CPUs). In C because the interpreter's own microseconds would hide a part of what the gate adds.
 *
 *   lane CPU SERVER_NETNS write SIZE out|in    LANE...     one operation: write SIZE bytes at one end, read them at the other
 *   lane CPU SERVER_NETNS open  HELLO out      LANE...     one operation: connect, HELLO one way, a byte back, close
 *
 * A LANE is ADDRESS:PORT:CGROUP: where the server's end listens, and the control group that the client's end belongs
 * to ("-": stay). HELLO is a file. Orders come by standard input, "LANE COUNT" a line: the answer is the CPU time of
 * COUNT operations in nanoseconds. The control group is changed outside of the measured time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LANES 8
#define BUFFER (4 << 20)

struct lane {
	struct sockaddr_in address;
	char *cgroup;
	int listener, writer, reader;
};

static struct lane lanes[LANES];
static struct lane *joined;
static char *bytes, *sink;
static size_t size;

static void fail(const char *what)
{
	fprintf(stderr, "lane: %s: %s\n", what, strerror(errno));
	exit(1);
}

#define CHECK(call) \
	do { \
		if ((call) < 0) \
			fail(#call); \
	} while (0)

static void join(struct lane *lane)
{
	char path[4096];
	int fd;

	if (lane->cgroup[0] == '-' || (joined && !strcmp(joined->cgroup, lane->cgroup)))
		return;
	snprintf(path, sizeof(path), "%s/cgroup.procs", lane->cgroup);
	CHECK(fd = open(path, O_WRONLY | O_CLOEXEC));
	CHECK(write(fd, "0", 1)); /* 0: whoever writes it */
	close(fd);
	joined = lane;
}

static int tcp(void)
{
	int fd, on = 1, space = BUFFER;

	CHECK(fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)));
	CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)));
	/* No pacing (BBR): a write must leave when it is made. Every kernel has reno. */
	CHECK(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	/* Both buffers hold more than one operation, so that a write never waits for a reader that is this very thread. */
	CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &space, sizeof(space)));
	CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &space, sizeof(space)));
	return fd;
}

static void dial(struct lane *lane, int *client, int *server)
{
	*client = tcp();
	CHECK(connect(*client, (struct sockaddr *)&lane->address, sizeof(lane->address)));
	CHECK(*server = accept4(lane->listener, NULL, NULL, SOCK_CLOEXEC));
}

static void move(struct lane *lane)
{
	size_t sent = 0, got = 0;
	ssize_t n;

	while (got < size) {
		if (sent < size) {
			n = send(lane->writer, bytes + sent, size - sent, MSG_DONTWAIT);
			if (n < 0 && errno != EAGAIN)
				fail("send");
			sent += n > 0 ? n : 0;
		}
		n = recv(lane->reader, sink, size - got, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN))
			fail("recv");
		got += n > 0 ? n : 0;
	}
}

static void visit(struct lane *lane)
{
	int client, server;
	size_t got = 0;
	ssize_t n;

	dial(lane, &client, &server);
	CHECK(send(client, bytes, size, 0));
	while (got < size) {
		CHECK(n = recv(server, sink, size - got, 0));
		if (n == 0)
			fail("the connection was cut");
		got += n;
	}
	CHECK(send(server, "x", 1, 0));
	CHECK(recv(client, sink, 1, 0));
	close(client);
	close(server);
}

static unsigned long long cpu_time(void)
{
	struct timespec t;

	CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t));
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void prepare(struct lane *lane, char *text)
{
	char *port = strchr(text, ':'), *group = port ? strchr(port + 1, ':') : NULL;

	if (!group) {
		fprintf(stderr, "lane: %s is no ADDRESS:PORT:CGROUP\n", text);
		exit(2);
	}
	*port++ = *group++ = 0;
	lane->cgroup = group;
	lane->address.sin_family = AF_INET;
	lane->address.sin_port = htons(atoi(port));
	if (inet_pton(AF_INET, text, &lane->address.sin_addr) != 1)
		fail(text);
	lane->listener = tcp();
	CHECK(bind(lane->listener, (struct sockaddr *)&lane->address, sizeof(lane->address)));
	CHECK(listen(lane->listener, 16));
}

int main(int argc, char **argv)
{
	int writes, inbound, count = argc - 6, home, away, which, ends[2];
	unsigned long long began;
	cpu_set_t cpu;
	unsigned long n;
	FILE *hello;

	if (count < 1 || count > LANES) {
		fprintf(stderr, "lane: CPU SERVER_NETNS write|open SIZE|HELLO out|in ADDRESS:PORT:CGROUP...\n");
		return 2;
	}
	CPU_ZERO(&cpu);
	CPU_SET(atoi(argv[1]), &cpu);
	CHECK(sched_setaffinity(0, sizeof(cpu), &cpu));
	writes = !strcmp(argv[3], "write");
	inbound = !strcmp(argv[5], "in");
	bytes = calloc(1, BUFFER);
	sink = calloc(1, BUFFER);
	if (!bytes || !sink)
		fail("calloc");
	if (writes) {
		size = strtoul(argv[4], NULL, 10);
	} else {
		if (!(hello = fopen(argv[4], "re")))
			fail(argv[4]);
		size = fread(bytes, 1, BUFFER, hello);
		fclose(hello);
	}
	if (size < 1 || size > BUFFER / 2) {
		fprintf(stderr, "lane: the size must be from 1 to %d\n", BUFFER / 2);
		return 2;
	}
	CHECK(home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
	CHECK(away = open(argv[2], O_RDONLY | O_CLOEXEC));
	/* The listeners belong to the control group that this program was started in: no gate looks at the server's end. */
	CHECK(setns(away, CLONE_NEWNET));
	for (which = 0; which < count; which++)
		prepare(&lanes[which], argv[6 + which]);
	CHECK(setns(home, CLONE_NEWNET));
	for (which = 0; writes && which < count; which++) {
		join(&lanes[which]);
		dial(&lanes[which], &ends[0], &ends[1]);
		lanes[which].writer = ends[inbound];
		lanes[which].reader = ends[!inbound];
		if (inbound) { /* the client speaks first, so that the gate has a payload to decide by */
			CHECK(send(ends[0], "x", 1, 0));
			CHECK(recv(ends[1], sink, 1, 0));
		}
	}
	while (scanf("%d %lu", &which, &n) == 2) {
		if (which < 0 || which >= count)
			return 2;
		if (!writes)
			join(&lanes[which]);
		began = cpu_time();
		for (unsigned long i = 0; i < n; i++)
			writes ? move(&lanes[which]) : visit(&lanes[which]);
		printf("%llu\n", cpu_time() - began);
		fflush(stdout);
	}
	return 0;
}

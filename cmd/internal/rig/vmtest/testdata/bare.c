/*
 * The bare end of a port in the guest, in C: blocking reads and writes of 64 KiB, so that the figures of rawport, which is
 * Go, can be believed. Two more roles do what a transfer cannot do without: CRC-32C and a file.
 *
 *   bare -port NAME -bytes N ROLE
 *
 *   echo, sink, source   as rawport
 *   store                sink into /dev/shm/bare with a checksum of each block
 *   send                 source from there, likewise
 */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <glob.h>
#include <unistd.h>

enum { BLOCK = 64 << 10 };

static unsigned char buf[BLOCK];
static uint32_t table[8][256];
static volatile uint32_t sum;

static void die(const char *what) { perror(what); exit(1); }

/* Eight tables, as the fastest way that an emulated processor has. */
static void tables(void) {
	for (uint32_t b = 0; b < 256; b++) {
		uint32_t c = b;
		for (int i = 0; i < 8; i++) c = c & 1 ? c >> 1 ^ 0x82f63b78 : c >> 1;
		table[0][b] = c;
	}
	for (int b = 0; b < 256; b++)
		for (int k = 1; k < 8; k++) table[k][b] = table[0][table[k - 1][b] & 255] ^ table[k - 1][b] >> 8;
}

static uint32_t crc(const unsigned char *p, size_t n) {
	uint32_t c = ~0u;
	for (; n >= 8; p += 8, n -= 8) {
		uint64_t x;
		memcpy(&x, p, 8);
		x ^= c;
		c = table[7][x & 255] ^ table[6][x >> 8 & 255] ^ table[5][x >> 16 & 255] ^ table[4][x >> 24 & 255] ^
		    table[3][x >> 32 & 255] ^ table[2][x >> 40 & 255] ^ table[1][x >> 48 & 255] ^ table[0][x >> 56];
	}
	while (n--) c = table[0][(c ^ *p++) & 255] ^ c >> 8;
	return ~c;
}

static int open_port(const char *name) {
	glob_t g;
	if (glob("/sys/class/virtio-ports/*/name", 0, NULL, &g)) die("virtio-ports");
	for (size_t i = 0; i < g.gl_pathc; i++) {
		char text[256] = "", device[64], *end;
		FILE *f = fopen(g.gl_pathv[i], "r");
		if (!f || !fgets(text, sizeof text, f)) die(g.gl_pathv[i]);
		fclose(f);
		text[strcspn(text, "\n")] = 0;
		if (strcmp(text, name)) continue;
		char *begin = g.gl_pathv[i] + strlen("/sys/class/virtio-ports/");
		end = strchr(begin, '/');
		snprintf(device, sizeof device, "/dev/%.*s", (int)(end - begin), begin);
		for (int tries = 0; tries < 1000; tries++, usleep(10000)) {
			int fd = open(device, O_RDWR);
			if (fd >= 0) return fd;
		}
		die(device);
	}
	fprintf(stderr, "no port %s\n", name);
	exit(1);
}

/* Waits for the first host, and ends with it. */
static size_t get(int fd, size_t n) {
	static int begun;
	for (;;) {
		ssize_t r = read(fd, buf, n);
		if (r > 0) { begun = 1; return r; }
		if (r < 0) die("read");
		if (begun) exit(0);
		usleep(1000);
	}
}

static void put(int fd, size_t n) {
	for (size_t done = 0; done < n;) {
		ssize_t w = write(fd, buf + done, n - done);
		if (w < 0) die("write");
		done += w;
	}
}

int main(int argc, char **argv) {
	if (argc != 6) return 2;
	int fd = open_port(argv[2]), file = -1;
	long long bytes = atoll(argv[4]);
	const char *role = argv[5];
	int work = !strcmp(role, "store") || !strcmp(role, "send");
	tables();
	if (work && (file = open("/dev/shm/bare", O_RDWR | O_CREAT, 0600)) < 0) die("/dev/shm/bare");
	if (!strcmp(role, "echo"))
		for (;;) put(fd, get(fd, BLOCK));
	if (!strcmp(role, "sink") || !strcmp(role, "store"))
		for (;; put(fd, 1)) {
			if (work && (ftruncate(file, 0) || lseek(file, 0, SEEK_SET))) die("truncate");
			for (long long left = bytes; left > 0;) {
				size_t have = 0, want = left < BLOCK ? left : BLOCK;
				if (!work) { left -= get(fd, want); continue; }
				static unsigned char block[BLOCK];
				for (size_t n; have < want; have += n) {
					n = get(fd, want - have);
					memcpy(block + have, buf, n);
				}
				sum = crc(block, want);
				if (write(file, block, want) != (ssize_t)want) die("write file");
				left -= want;
			}
		}
	for (long long left = work ? bytes : 0; left > 0; left -= BLOCK)
		if (write(file, buf, BLOCK) != BLOCK) die("write file");
	for (;;) {
		get(fd, 1);
		if (work) lseek(file, 0, SEEK_SET);
		for (long long left = bytes; left > 0;) {
			size_t want = left < BLOCK / 2 ? left : BLOCK / 2;
			if (work) {
				if (read(file, buf, want) != (ssize_t)want) die("read file");
				sum = crc(buf, want);
			}
			put(fd, want);
			left -= want;
		}
	}
}

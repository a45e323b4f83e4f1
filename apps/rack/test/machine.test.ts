/** What a machine is made of and how it reads what it is sent: facts, iPXE scripts, cloud-config, the table of sadness. */
// biome-ignore-all lint/suspicious/noTemplateCurlyInString: iPXE's own variables
import { enlistment } from '@muster/shared/agent'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { phoneHomeOf, topLevelValue, webhookOf } from '../src/machine/cloud-config.ts'
import { machineFacts, machineNameOf } from '../src/machine/facts.ts'
import { HttpFailure } from '../src/machine/http.ts'
import { type IpxeHost, runIpxe } from '../src/machine/ipxe.ts'
import { kernelArgumentsOf } from '../src/machine/network-boot.ts'
import { behaviourOf } from '../src/machine/sad.ts'
import { bmcAddressOf, candidatePlaces } from '../src/rack/addresses.ts'
import { machineSpecs } from '../src/rack/specs.ts'

describe('facts', () => {
  test('are the same each time and pass the protocol; MACs, names and BMC addresses are unique over 5,000 machines', () => {
    const macs = new Set<string>()
    const names = new Set<string>()
    const addresses = new Set<string>()
    const kinds = new Set<string>()
    let interfaces = 0
    for (let index = 0; index < 5_000; index++) {
      const facts = machineFacts({ seed: 3, index })
      expect(enlistment.safeParse({ ...facts.inventory, hostname: machineNameOf(index) }).error).toBeUndefined()
      for (const { mac } of facts.inventory.interfaces) macs.add(mac)
      for (const { kind } of facts.inventory.disks) kinds.add(kind)
      interfaces += facts.inventory.interfaces.length
      names.add(machineNameOf(index))
      const { address } = bmcAddressOf({ layout: 'address each', network: 9, port: 623 }, index)
      expect(address).toMatch(/^127\.9\.\d+\.(?!0$|255$)\d+$/)
      addresses.add(address)
    }
    expect([macs.size, names.size, addresses.size, kinds.size]).toEqual([interfaces, 5_000, 5_000, 3])
    expect(machineFacts({ seed: 3, index: 17 })).toEqual(machineFacts({ seed: 3, index: 17 }))
    expect(machineFacts({ seed: 4, index: 17 }).bootMac).not.toBe(machineFacts({ seed: 3, index: 17 }).bootMac)
  })

  test('names choose behaviour, with a number or without', () => {
    expect(behaviourOf('slow-bmc-12')).toEqual({ bmc: { latencyMs: [1_500, 3_000] } })
    expect(behaviourOf('never-phones-home')).toEqual({ phoneHome: 'never' })
    expect(behaviourOf('r01u01')).toEqual({})
    expect(behaviourOf('constructor')).toEqual({})
  })

  test('machines go to the partitions in turn, the last ones are sad', () => {
    const partition = [
      { name: 'p1', url: 'http://a' },
      { name: 'p2', url: 'http://b' },
    ]
    expect(machineSpecs({ machines: 3, partition, sad: ['dead-bmc'] })).toEqual([
      { index: 0, bootUrl: 'http://a' },
      { index: 1, bootUrl: 'http://b' },
      { index: 2, bootUrl: 'http://a', name: 'dead-bmc' },
    ])
    expect(machineSpecs({ machines: 8, partition, sad: [] }).map(({ speaks = 'ipmi' }) => speaks)).toEqual([
      ...['ipmi', 'ipmi', 'ipmi', 'redfish'],
      ...['ipmi', 'ipmi', 'ipmi', 'redfish'],
    ])
    expect(() => machineSpecs({ machines: 0, partition, sad: ['dead-bmc'] })).toThrow('1 sad machines')
  })

  test('what is asked for of an address is the only thing tried', () => {
    expect(candidatePlaces({ layout: 'address each', network: 9 }, 1)).toEqual([{ layout: 'address each', network: 9, port: 6230 }])
    expect(new Set(candidatePlaces({ layout: 'address each' }, 1).map(place => place.network)).size).toBeGreaterThan(20)
    expect(() => bmcAddressOf({ layout: 'port each', network: 0, port: 65_535 }, 1)).toThrow(RangeError)
  })
})

describe('iPXE', () => {
  async function run(lines: string, files: Record<string, string> = {}) {
    const said: string[] = []
    const fetched: string[] = []
    const fetch = async (url: string) => {
      fetched.push(url)
      if (!(url in files)) throw new HttpFailure(`GET ${url}: 404`, { status: 404 })
      return files[url] as string
    }
    const host: IpxeHost = {
      settings: { 'net0/mac': '52:54:00:aa:bb:cc', uuid: 'u-1', platform: 'efi' },
      fetchScript: fetch,
      fetchFile: async url => {
        await fetch(url)
      },
      sleep: async seconds => {
        said.push(`(${seconds} s)`)
      },
      note: line => said.push(line),
    }
    const outcome = await runIpxe({ text: `#!ipxe\n${lines}`, url: 'http://s/boot/ipxe/mac' }, host)
    return { outcome, said, fetched }
  }
  const files = { 'http://s/k': '', 'http://s/i1': '', 'http://s/i2': '', 'http://s/boot/ipxe/k': '' }

  test('kernel, initrds, boot: arguments as the kernel gets them', async () => {
    const { outcome, fetched } = await run(
      'set base http://s\nkernel ${base}/k initrd=a x=${net0/mac:hexhyp} \\\n  -- y=${nothing}z\ninitrd --name a ${base}/i1\ninitrd /i2\nboot',
      files,
    )
    expect(outcome).toEqual({
      kind: 'kernel',
      url: 'http://s/k',
      arguments: 'initrd=a x=52-54-00-aa-bb-cc -- y=z',
      initrds: ['http://s/i1', 'http://s/i2'],
    })
    expect(fetched).toEqual(['http://s/k', 'http://s/i1', 'http://s/i2'])
    expect((await run('kernel k', files)).outcome).toEqual({ kind: 'disk', how: 'exit' })
  })

  test('a command that fails ends the script, unless || catches it', async () => {
    expect((await run('kernel http://s/gone\nboot')).outcome).toEqual({
      kind: 'failed',
      reason: 'kernel http://s/gone: GET http://s/gone: 404',
    })
    expect((await run('kernel http://s/gone || goto other\nboot\n:other\nsanboot --drive 0x80')).outcome).toEqual({
      kind: 'disk',
      how: 'sanboot',
    })
    expect((await run('kernel gone ||\necho on\nreboot')).said).toContain('on')
    expect((await run('isset ${uuid} && poweroff || reboot')).outcome).toEqual({ kind: 'power-off' })
    expect((await run('isset ${gone} && poweroff || reboot')).outcome).toEqual({ kind: 'reboot' })
    expect((await run('iseq ${platform} efi && exit 1 || sanboot')).outcome).toEqual({ kind: 'disk', how: 'exit' })
    expect((await run('login')).outcome).toEqual({ kind: 'failed', reason: 'login: command not found' })
    expect((await run('goto nowhere')).outcome).toMatchObject({ kind: 'failed' })
    expect((await run('shell')).outcome).toEqual({ kind: 'waits', command: 'shell' })
  })

  test('loops come to an end; sleeping and retrying works', async () => {
    expect((await run(':again\ngoto again')).outcome).toEqual({ kind: 'failed', reason: 'no end after 5000 commands' })
    const { said } = await run('sleep 5\nexit')
    expect(said).toEqual(['(5 s)'])
  })

  test('chain goes into another script and comes back; what that boots, boots', async () => {
    const more = {
      ...files,
      'http://s/a': '#!ipxe\nset x 1\necho in a\nexit',
      'http://s/b': '#!ipxe\nkernel /k q\nboot',
      'http://s/c': 'text',
    }
    expect((await run('chain http://s/a\necho back\nchain http://s/b', more)).outcome).toMatchObject({ kind: 'kernel', arguments: 'q' })
    expect((await run('chain http://s/c || exit', more)).outcome).toEqual({ kind: 'disk', how: 'exit' })
    const forever = { 'http://s/a': '#!ipxe\nchain http://s/a' }
    expect((await run('chain http://s/a', forever)).outcome).toMatchObject({ kind: 'failed' })
    expect((await runIpxe({ text: '<html>', url: 'u' }, {} as IpxeHost)).kind).toBe('failed')
  })

  test('kernel arguments: the last of equals counts', () => {
    expect(Object.fromEntries(kernelArgumentsOf(' a=1  quiet a=x=y '))).toEqual({ a: 'x=y', quiet: '' })
  })
})

describe('cloud-config', () => {
  const url = 'http://10.0.0.1/metadata/t/phone-home#x'

  test.each([
    [
      'a block',
      `#cloud-config\nusers: [a]\nphone_home:\n  # tell them\n  url: ${url}\n  post:\n    - instance_id\n    - "fqdn"\n  tries: 3\nruncmd: []\n`,
    ],
    [
      'a block with a list in one line',
      `#cloud-config\nphone_home:\n    tries: 3 # enough\n    post: [ instance_id, 'fqdn' ]\n    url: "${url}"\n`,
    ],
    ['JSON in a line', `#cloud-config\nphone_home: {"url":"${url}","post":["instance_id","fqdn"],"tries":3}\n`],
    ['a flow mapping', `#cloud-config\nphone_home: {url: ${url}, tries: 3, post: [instance_id, fqdn]}\n`],
    ['JSON as a whole', `#cloud-config\n{"phone_home": {"url": "${url}", "post": ["instance_id", "fqdn"], "tries": 3}}`],
  ])('phone_home as %s', (_, text) => {
    expect(phoneHomeOf(text)).toEqual({ url, post: ['instance_id', 'fqdn'], tries: 3 })
  })

  test('defaults, and what is none', () => {
    expect(phoneHomeOf(`#cloud-config\nphone_home:\n  url: ${url}\n  post: all`)).toEqual({ url, post: 'all', tries: 10 })
    expect(phoneHomeOf(`#cloud-config\nphone_home:\n  url: ${url}\n  tries: 9999`)?.tries).toBe(20)
    for (const text of [
      '',
      '#!/bin/sh\nphone_home:\n  url: x',
      '#cloud-config\nother:\n  url: x',
      '#cloud-config\nphone_home:\nurl: x',
      '#cloud-config\n{}\n',
    ])
      expect(phoneHomeOf(text), text).toBeUndefined()
  })

  test.each([
    ['a block', `#cloud-config\nreporting:\n  muster:\n    type: webhook\n    endpoint: "${url}" # here\nruncmd: []\n`],
    ['JSON in a line', `#cloud-config\nreporting: {"log":{"type":"log"},"muster":{"type":"webhook","endpoint":"${url}"}}\n`],
    ['JSON as a whole', `#cloud-config\n{"reporting": {"muster": {"endpoint": "${url}"}}}`],
  ])('a webhook as %s', (_, text) => {
    expect(webhookOf(text)).toEqual({ endpoint: url })
    expect(webhookOf(text.replace('reporting', 'other'))).toBeUndefined()
    expect(webhookOf(text.replace('#cloud-config', '#!/bin/sh'))).toBeUndefined()
  })

  test('a webhook that wants signed requests', () => {
    const keys = { endpoint: url, consumer_key: 'a', token_key: 'b', token_secret: 'c' }
    expect(webhookOf(`#cloud-config\nreporting: ${JSON.stringify({ maas: { type: 'webhook', ...keys } })}\n`)).toEqual(keys)
  })

  test('meta-data values', () => {
    const text = 'instance-id: "i-1"\nlocal-hostname: m1 # here\nnested:\n  instance-id: no\npublic-keys: ["a b"]\n'
    expect(topLevelValue(text, 'instance-id')).toBe('i-1')
    expect(topLevelValue(text, 'local-hostname')).toBe('m1')
    expect(topLevelValue(text, 'gone')).toBeUndefined()
    expect(topLevelValue('{"instance-id": "j"}', 'instance-id')).toBe('j')
    expect(topLevelValue('cloud-init: "#cloud-config\\nx: \\"1\\"\\n"\n', 'cloud-init')).toBe('#cloud-config\nx: "1"\n')
  })

  test('nothing anybody writes makes it throw', () => {
    const pieces = fc.array(
      fc.oneof(
        fc.string(),
        fc.constantFrom('phone_home:', 'reporting:', '  endpoint: x', '  url: x', '{', '}', '[', '"', '#cloud-config', ' - ', ': '),
      ),
    )
    fc.assert(
      fc.property(pieces, words => {
        phoneHomeOf(`#cloud-config\n${words.join('\n')}`)
        webhookOf(`#cloud-config\n${words.join('\n')}`)
        topLevelValue(words.join('\n'), 'instance-id')
      }),
    )
  })
})

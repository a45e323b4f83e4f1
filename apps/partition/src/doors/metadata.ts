// The metadata door: cloud-init's NoCloud over HTTP. The token in the path is the machine's, for this deployment; a GET changes nothing.
import type { DoorEnv } from '@muster/server/http/incoming'
import type { Hono } from 'hono'
import { machineOfToken } from '../domain/agent.ts'
import type { Core } from '../domain/core.ts'
import { phoneHome } from '../domain/first-boot.ts'
import { deploymentSecrets, hostKeysIn, instanceIdOf, takeSecret, userDataBytes, vendorData, yaml } from '../domain/metadata.ts'
import { networkOf } from '../domain/network-config.ts'
import { type MetadataPlace, machineDoor, neverKept, reportIn, textOrBytes } from './machine-requests.ts'

export function metadataDoor(core: Core, options: MetadataPlace): Hono<DoorEnv> {
  const app = machineDoor(core, { name: 'metadata', proxies: options.proxies }).use(neverKept)
  const machineOf = (token: string) => machineOfToken(core, 'metadata', token)

  app.get('/:token/meta-data', async c => {
    const token = c.req.param('token')
    const machine = await machineOf(token)
    const { sshKeys } = await deploymentSecrets(core, machine)
    return c.text(
      yaml({
        'instance-id': instanceIdOf(machine),
        'local-hostname': machine.hostname,
        'public-keys': sshKeys,
        // For templates in user-data: {{ ds.meta_data.secrets_url }}.
        secrets_url: `${options.baseUrl}/metadata/${token}/secrets`,
      }),
    )
  })
  app.get('/:token/user-data', async c => {
    const bytes = userDataBytes(await deploymentSecrets(core, await machineOf(c.req.param('token'))))
    // NoCloud takes a seed without user-data for none at all.
    return textOrBytes(c, bytes ?? Buffer.from('#cloud-config\n{}\n'))
  })
  app.get('/:token/vendor-data', async c => {
    const machine = await machineOf(c.req.param('token'))
    return c.text(vendorData(machine, { core, baseUrl: options.baseUrl, dataSource: 'nocloud' }))
  })
  app.get('/:token/network-config', async c => {
    const machine = await machineOf(c.req.param('token'))
    return c.text(yaml(networkOf(machine)))
  })
  app.post('/:token/phone-home', async c => {
    const machine = await machineOf(c.req.param('token'))
    // A form that cannot be read still says that the machine is up.
    const form = await c.req.parseBody().catch(() => ({}))
    await phoneHome(core, machine, hostKeysIn(form))
    return c.body(null, 204)
  })
  app.post('/:token/report', async c => {
    await options.firstBoots.receive(c.req.param('token'), await reportIn(c.req))
    return c.body(null, 204)
  })
  app.post('/:token/secrets/:name', async c => {
    const machine = await machineOf(c.req.param('token'))
    return c.text(await takeSecret(core, machine, c.req.param('name')))
  })
  return app
}
